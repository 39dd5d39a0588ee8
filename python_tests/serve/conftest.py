"""A tiny recommender for the tests of this folder."""

import pytest

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Recommender
from python_tests.crs.tiny_system import ITEMS, system


@pytest.fixture(scope="package")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6.0)  # default initialisation is nearly uniform
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None)
    return Recommender(bundle)
