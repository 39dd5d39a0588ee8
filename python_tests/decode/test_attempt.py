"""Faster ways: what a failure says of the model, and what only of the call."""

import warnings
from importlib import import_module

import pytest
import torch

from crs_fast.decode import capability, recommend
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
    capability(model)

    def refuse(*args):
        raise IndexError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = model.get_input_embeddings().register_forward_pre_hook(refuse)
        with pytest.raises(IndexError):
            recommend(model, torch.tensor([[5, 4]]), **how)
        handle.remove()
        ran.clear()
        recommend(model, torch.tensor([[5, 6]]), **how)
    assert ran == [0, 1]


def test_engines_are_tried_from_the_fastest_on_and_each_failure_is_said_and_remembered(monkeypatch):
    recommend_file, tried = import_module("crs_fast.decode.recommend"), []
    model, plain = tiny_model("llama", VOCAB), recommend_file.search

    def no_graph(model, attention, shape, prompts, request):
        tried.append("compiled graph" if shape.compiled else "graph")
        raise RuntimeError(f"no {tried[-1]}")

    def no_compiler(prompt, plan):
        tried.append("compiled" if prompt.lm.compiled else "plain")
        if prompt.lm.compiled:
            raise RuntimeError("no compiler")
        return plain(prompt, plan)

    monkeypatch.setattr(recommend_file, "can_record", lambda device: True)
    monkeypatch.setattr(recommend_file, "search_in_graph", no_graph)
    monkeypatch.setattr(recommend_file, "search", no_compiler)
    monkeypatch.setattr(tree_view, "CompiledLayer", lambda layer, index: layer)
    how = dict(trie=GRID, vocab=make_vocab(2, 3), num_beams=2)
    wanted = recommend(model, torch.tensor([[5, 6]]), **how)
    tried.clear()
    with pytest.warns(UserWarning, match="is given up for this call") as caught:
        got = recommend(model, torch.tensor([[5, 6]]), cuda_graph=True, compile_layers=True, **how)
    assert got.sids.equal(wanted.sids)
    assert tried == ["compiled graph", "graph", "compiled", "plain"]
    told = [str(w.message).rpartition(": ")[2] for w in caught]
    assert told == ["no compiled graph", "no graph", "no compiler"]
    assert {w.filename for w in caught} == {__file__}
    tried.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommend(model, torch.tensor([[5, 6]]), cuda_graph=True, compile_layers=True, **how)
    assert tried == ["plain"]
