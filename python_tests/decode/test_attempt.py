"""Faster ways: what a failure says of the model, and what only of the call."""

import warnings

import pytest
import torch

from crs_fast.decode import recommend
from crs_fast.decode.attempt import Attempts
from crs_fast.decode.lm import tree_view
from crs_fast.decode.lm.model_state import ModelState
from python_tests.helpers import tiny_model

from .test_recommend import GRID, VOCAB, make_vocab


class Model:
    """Anything that a weak reference may point to."""


def attempt(model, option, case, fast, plain):
    """As `recommend` does it with one faster engine."""
    attempts = Attempts(ModelState.of(model))
    result = attempts.run(option, case, fast)
    if result is None:
        result = plain()
    attempts.remember()
    return result


def fails(error):
    def run():
        raise error

    return run


def test_a_failure_is_remembered_where_the_plain_way_does_the_call():
    model = Model()
    with pytest.warns(UserWarning, match="fast is given up for this call: KeyError: 'x'"):
        assert attempt(model, "fast", 1, fails(KeyError("x")), lambda: "plain") == "plain"
    assert attempt(model, "fast", 1, lambda: "fast", lambda: "plain") == "plain"
    assert attempt(model, "fast", 2, lambda: "fast", lambda: "plain") == "fast"


def test_the_warning_says_what_a_failure_came_after():
    def run():
        try:
            raise KeyError("cause")
        finally:
            raise RuntimeError("where a capture ends")

    with pytest.warns(UserWarning, match="RuntimeError: where a capture ends, after KeyError: 'ca"):
        attempt(Model(), "fast", 1, run, lambda: "plain")


@pytest.mark.filterwarnings("error")
def test_wrong_calls_and_full_memory_are_raised_and_not_remembered():
    model = Model()
    with pytest.raises(IndexError, match="plain"):
        attempt(model, "fast", 1, fails(KeyError("x")), fails(IndexError("plain")))
    with pytest.raises(torch.OutOfMemoryError):
        attempt(model, "fast", 1, fails(torch.OutOfMemoryError()), lambda: "plain")
    assert attempt(model, "fast", 1, lambda: "fast", lambda: "plain") == "fast"


def test_one_bad_request_costs_nobody_the_compiled_layers(monkeypatch):
    model, ran = tiny_model("llama", VOCAB), []
    monkeypatch.setattr(tree_view, "CompiledLayer", lambda layer, index: ran.append(index) or layer)
    how = dict(trie=GRID, vocab=make_vocab(2, 3), num_beams=2, compile_layers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(IndexError):
            recommend(model, torch.tensor([[5, VOCAB]]), **how)
        ran.clear()
        recommend(model, torch.tensor([[5, 6]]), **how)
    assert ran == [0, 1]
