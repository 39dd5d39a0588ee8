"""A model directory that engines serve."""

from types import SimpleNamespace

import pytest
import torch

from crs_fast.crs.checkpoint import save_bundle
from python_tests.crs.tiny_system import ITEMS, SEEKER, say, system


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """model, tokenizer, trie, vocab, prompts and the directory. Half of the prompts end in the
    begin token."""
    model, tokenizer, trie, vocab, control, builder = system()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
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
