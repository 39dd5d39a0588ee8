"""A model directory that engines serve."""

from types import SimpleNamespace

import pytest

from crs_fast.crs.checkpoint import save_bundle
from python_tests.crs.tiny_system import ITEMS, SEEKER, say, system
from python_tests.helpers import sharpen


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """model, tokenizer, trie, vocab, prompts and the directory. Half of the prompts end in the
    begin token."""
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
    folder = tmp_path_factory.mktemp("served") / "model"
    save_bundle(folder, (model, tokenizer), trie, vocab, control, ITEMS)
    prompts = []
    for n in range(8):
        turn = say(SEEKER, f"I like Film {n}," + " more" * n, f"i{n}")
        prompts.append([*builder.context((turn,)), control.rec, *[vocab.begin] * (n % 2)])
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, trie=trie, vocab=vocab, prompts=prompts, folder=folder,
        control=control, builder=builder,
    )  # fmt: skip
