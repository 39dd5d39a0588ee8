"""Compiled decoder layers give what eager ones give, from few compilations."""

import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from crs_fast.decode import recommend
from crs_fast.decode.lm.joint_linear import PROJECTIONS, lay_together
from crs_fast.trie import SidTrie
from python_tests.helpers import left_padded, random_sids, tiny_model, vocab_of

LEVELS, CODES = 4, 6


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def system(kind, **extra):
    trie = SidTrie.from_sids(random_sids(4, 200, LEVELS, CODES).unique(dim=0))
    return tiny_model(kind, 7 + LEVELS * CODES, **extra), trie, vocab_of(LEVELS, CODES)


def both(model, trie, vocab, prompt, **how):
    how = dict(trie=trie, vocab=vocab, num_beams=9, **how)
    wanted = recommend(model, *prompt, **how)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*given up.*")
        got = recommend(model, *prompt, compile_layers=True, **how)
    torch.testing.assert_close(got.scores, wanted.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.sids, wanted.sids)


# Without code generation: what is traced is the same, and each compilation costs a tenth.
@pytest.fixture
def traced(monkeypatch):
    from functools import cache, partial

    from crs_fast.decode.lm import compiled_layers

    monkeypatch.setattr(
        compiled_layers,
        "_compiled",
        cache(partial(torch.compile, fullgraph=True, backend="aot_eager")),
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mistral", "phi"])
def test_against_eager_layers(kind, traced):
    arguments = system(kind)
    for normalize in ("vocab", "level"):
        both(*arguments, left_padded(12, 12), normalize=normalize)
        both(*arguments, left_padded(9, 4), normalize=normalize)


def test_all_layers_and_lengths_share_few_compilations(traced):
    arguments = system("llama", num_hidden_layers=12)
    both(*arguments, left_padded(12, 12))
    assert counters["stats"]["unique_graphs"] == 2  # a prompt's pass, a step's
    for length in (9, 17, 30):
        both(*arguments, left_padded(length, 4, seed=length))
    assert counters["stats"]["unique_graphs"] <= 3  # prompts of any length
    assert not counters["graph_break"]


def test_projections_of_one_input_as_one_product(traced):
    model, trie, vocab = system("qwen3", num_hidden_layers=3)
    lay_together(model)
    with PROJECTIONS.using("together"):
        both(model, trie, vocab, left_padded(12, 5))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_generated_code():
    both(*system("llama"), left_padded(12, 5))


def test_a_model_that_can_not_be_compiled_runs_eagerly_and_says_so_once(traced):
    model, trie, vocab = system("gpt2")  # hands its layers the cache by position
    how = dict(trie=trie, vocab=vocab, num_beams=9)
    wanted = recommend(model, *left_padded(12, 5), **how)
    with pytest.warns(UserWarning, match="compile_layers is given up") as caught:
        got = recommend(model, *left_padded(12, 5), compile_layers=True, **how)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert torch.equal(got.sids, wanted.sids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommend(model, *left_padded(12, 5), compile_layers=True, **how)


def test_hooks_are_not_skipped(traced):
    model, trie, vocab = system("llama")
    model.model.layers[1].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="must have no hooks"):
        recommend(model, *left_padded(5), trie=trie, vocab=vocab, compile_layers=True)
