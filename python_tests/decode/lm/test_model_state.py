"""What is remembered of a model: no model waits for another, and nothing outlives its model."""

import gc
import threading
import warnings
import weakref

import pytest

from crs_fast.decode import capability, recommend
from crs_fast.decode.lm.model_state import ModelState
from python_tests.helpers import tiny_model

from ..test_recommend import GRID, VOCAB, make_vocab, prompts


class Model:
    """Anything that a weak reference may point to."""


def test_the_probe_of_one_model_does_not_block_a_call_on_another():
    slow, other = tiny_model("llama", VOCAB), tiny_model("qwen2", VOCAB)
    probing, go_on = threading.Event(), threading.Event()

    def wait(*_):
        probing.set()
        assert go_on.wait(60)

    hook = slow.get_input_embeddings().register_forward_pre_hook(wait)
    answers = []
    first = threading.Thread(target=lambda: answers.append(capability(slow)))
    second = threading.Thread(
        target=lambda: recommend(other, *prompts((4,)), trie=GRID, vocab=make_vocab(2, 3))
    )
    first.start()
    try:
        assert probing.wait(60)
        second.start()
        second.join(20)
        is_blocked = second.is_alive()
    finally:
        hook.remove()
        go_on.set()
        first.join()
        second.join()
    assert not is_blocked
    assert answers[0].attention == "tree"


def test_a_known_capability_is_read_while_the_lock_is_taken():
    """A call on a model does not wait until another thread has recorded a CUDA graph of it."""
    model = tiny_model("llama", VOCAB)
    known = capability(model)
    with ModelState.of(model).lock:
        assert capability(model) == known


def test_threads_that_meet_a_model_first_get_one_state():
    model, states = Model(), []
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        states.append(ModelState.of(model))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(state) for state in states}) == 1


def test_a_warning_is_given_once_per_model_and_names_the_callers_line():
    models = Model(), Model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in (*models, *models):
            ModelState.of(model).warn_once("slow")
        ModelState.of(models[0]).warn_once("slower")
    assert [str(w.message) for w in caught] == ["slow", "slow", "slower"]
    assert {w.filename for w in caught} == {__file__}


def test_the_fallback_warning_names_the_callers_line():
    model = tiny_model("bloom", VOCAB)
    with pytest.warns(UserWarning, match="can't decode beams as a token tree") as caught:
        recommend(model, *prompts((4,)), trie=GRID, vocab=make_vocab(2, 3), num_beams=2)
    assert caught[0].filename == __file__


def test_a_state_lives_as_long_as_its_model():
    model = tiny_model("llama", VOCAB)
    state = weakref.ref(ModelState.of(model))
    capability(model)
    del model
    gc.collect()
    assert state() is None
