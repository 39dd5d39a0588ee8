"""Recordings of whole searches: the bookkeeping, with a stand-in for the CUDA graph.

The stand-in records by running, and replays by running again into the tensors of the first run, as
a graph would. That the device's own recordings give the same is in `test_graph_gpu.py`.
"""

import gc
import threading
import warnings
import weakref
from contextlib import contextmanager
from importlib import import_module
from unittest import mock

import pytest
import torch
import transformers
from packaging import version
from peft import LoraConfig, get_peft_model

from crs_fast.decode import graph, recommend
from crs_fast.decode.lm import recordings
from crs_fast.decode.lm.model_state import ModelState
from crs_fast.decode.output import Beams
from crs_fast.trie import SidTrie, TrieSlot
from python_tests.decode.recording_doubles import NoWaiting, capturing
from python_tests.helpers import left_padded, random_sids, tiny_model, vocab_of

LEVELS, CODES, WORDS = 3, 6, 7
RECORDED = ["llama", "qwen3", "mistral", "phi"]
transformers_5 = version.parse(transformers.__version__).major >= 5
if transformers_5:
    # Before, GPT-2 looks for padding among the tokens and Gemma 2 makes a tensor a pass.
    RECORDED += ["gpt2", "gemma2"]


@contextmanager
def attention_calls(seen):
    """Note the shape of the mask, and what else SDPA is asked for, of every call."""
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def noted(*args, attn_mask=None, **how):
        seen.append((None if attn_mask is None else attn_mask.shape, sorted(how.items())))
        return sdpa(*args, attn_mask=attn_mask, **how)

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", noted):
        yield


def can_record_anywhere(monkeypatch):
    recommend_file = import_module("crs_fast.decode.recommend")
    monkeypatch.setattr(recommend_file, "can_record", lambda device: True)


@pytest.fixture
def made(monkeypatch):
    """Where recording is possible: the searches that were recorded."""
    runs = []

    def record(run, place):
        warm, recorded = [], []
        with attention_calls(warm):
            run()
        with NoWaiting(), capturing(), attention_calls(recorded):
            beams = run()
        assert not transformers_5 or recorded == warm  # another kernel would not be warmed up
        with torch.inference_mode(False):
            held = Beams(*(t.clone() for t in beams))
        runs.append(run)

        def replay():
            for kept, new in zip(held, run(), strict=True):
                kept.copy_(new)
            return held

        return replay

    can_record_anywhere(monkeypatch)
    monkeypatch.setattr(graph, "record", record)
    return runs


def system(kind="llama", items=80, seed=4):
    trie = SidTrie.from_sids(random_sids(seed, items, LEVELS, CODES).unique(dim=0))
    return tiny_model(kind, WORDS + LEVELS * CODES), trie, vocab_of(LEVELS, CODES)


def both(model, trie, vocab, prompt, **how):
    """By a recording and eagerly; they agree."""
    how = dict(trie=trie, vocab=vocab, num_beams=7, **how)
    got = recommend(model, *prompt, cuda_graph=True, **how)
    wanted = recommend(model, *prompt, **how)
    assert torch.equal(got.sids, wanted.sids)
    torch.testing.assert_close(got.scores, wanted.scores)
    assert got.items == wanted.items
    return got


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
def test_one_recording_serves_prompts_of_like_length(made, kind, normalize):
    arguments = system(kind)
    for lengths in ((9, 5), (3, 12), (16, 16), (16, 1)):
        both(*arguments, left_padded(*lengths), normalize=normalize)
    # One with room for padding; (16, 16) fills a recording of its own.
    assert len(made) == 2
    both(*arguments, left_padded(17, 4), normalize=normalize)
    assert len(made) == 3


def test_filters_and_temperature(made):
    model, trie, vocab = system()
    prompt = left_padded(9, 5)
    for deny in ([0, 1], [5], list(range(30))):
        both(model, trie, vocab, prompt, filters=trie.filter(deny=deny))
    assert len(made) == 1
    both(model, trie, vocab, prompt, temperature=0.5)
    assert len(made) == 2


@pytest.mark.parametrize("with_vocab", [True, False])
def test_catalogues_of_a_slot(made, with_vocab):
    model, _, vocab = system()
    vocab = vocab if with_vocab else None
    slot = TrieSlot(200, num_levels=LEVELS, num_codes=CODES)
    answers = []
    for seed in range(3):
        trie = SidTrie.from_sids(random_sids(seed, 150, LEVELS, CODES).unique(dim=0))
        slot.load(trie)
        answers.append(both(model, slot.trie, vocab, left_padded(9, 5)).sids)
        wanted = recommend(model, *left_padded(9, 5), trie=trie, vocab=vocab, num_beams=7)
        assert torch.equal(answers[-1], wanted.sids)
    assert len(made) == 1
    assert not torch.equal(answers[0], answers[1])


def test_a_slot_with_codes_that_the_vocabulary_lacks(made):
    model, _, vocab = system()
    slot = TrieSlot(200, num_levels=LEVELS, num_codes=2 * CODES)
    slot.load(SidTrie.from_sids(random_sids(0, 50, LEVELS, CODES).unique(dim=0)))
    both(model, slot.trie, vocab, left_padded(9, 5))
    slot.load(SidTrie.from_sids(random_sids(0, 150, LEVELS, 2 * CODES).unique(dim=0)))
    with pytest.raises(ValueError, match="vocab must have a token for each code"):
        recommend(model, *left_padded(9, 5), trie=slot.trie, vocab=vocab, cuda_graph=True)


def test_a_model_keeps_its_newest_recordings(made):
    model, trie, vocab = system()
    for beams in [*range(1, recordings.MAX_RECORDINGS + 2), 1]:
        recommend(model, *left_padded(9), trie=trie, vocab=vocab, num_beams=beams, cuda_graph=True)
    assert len(ModelState.of(model).recordings._kept) == recordings.MAX_RECORDINGS
    assert len(made) == recordings.MAX_RECORDINGS + 2


def test_weights_and_adapters_that_change(made):
    model, trie, vocab = system()
    prompt = left_padded(9, 5)
    first = both(model, trie, vocab, prompt)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)  # in place
    assert not torch.equal(both(model, trie, vocab, prompt).scores, first.scores)
    assert len(made) == 1
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    both(model, trie, vocab, prompt)
    assert len(made) == 2
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    both(model, trie, vocab, prompt)  # the base model's own layers were replaced
    assert len(made) == 3
    with adapted.disable_adapter():
        both(model, trie, vocab, prompt)
    both(model, trie, vocab, prompt)
    adapted.merge_adapter()
    both(model, trie, vocab, prompt)
    assert len(made) == 6


def test_inference_mode_and_after_it(made):
    arguments = system()
    with torch.inference_mode():
        both(*arguments, left_padded(9, 5))
    both(*arguments, left_padded(7, 8))
    assert len(made) == 1


def test_threads_share_recordings(made):
    model, trie, vocab = system()
    how = dict(trie=trie, vocab=vocab, num_beams=7)
    cases = [left_padded(9, 5, seed=seed) for seed in range(4)]
    wanted = [recommend(model, *case, **how).sids for case in cases]
    wrong = []

    def serve(which):
        for _ in range(5):
            got = recommend(model, *cases[which], cuda_graph=True, **how).sids
            if not torch.equal(got, wanted[which]):
                wrong.append(which)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(made) == 1


def test_what_can_not_be_recorded_runs_eagerly_and_is_not_tried_again(made, monkeypatch):
    tries = []

    def record(run, place):
        tries.append(run)
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(graph, "record", record)
    arguments = system()
    with pytest.warns(UserWarning, match="RuntimeError: operation not permitted") as caught:
        both(*arguments, left_padded(9, 5))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both(*arguments, left_padded(9, 5))
    assert len(tries) == 1


def test_on_the_cpu_it_says_that_it_runs_eagerly():
    arguments = system()
    with pytest.warns(UserWarning, match="the model must be on a CUDA device"):
        both(*arguments, left_padded(9, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both(*arguments, left_padded(9, 5))


def test_a_turn_is_taken_on_the_models_device():
    turn = recordings.Recordings(threading.Lock())._turn
    with mock.patch("torch.cuda") as cuda, turn(torch.device("cuda", 1)):
        cuda.device.assert_called_once_with(torch.device("cuda", 1))
        assert cuda.device.return_value.__enter__.called
        assert not cuda.device.return_value.__exit__.called


@pytest.mark.parametrize("length", [1, 15, 16, 17, 127, 128, 129, 500, 4000])
def test_rounding_up(length):
    columns = graph.rounded_up(length)
    assert 0 <= columns - length < max(16, length / 8)
    assert graph.rounded_up(columns) == columns


def test_a_model_and_its_recordings_go_together(monkeypatch):
    """A recording holds no model, so a model that is done with is freed."""
    can_record_anywhere(monkeypatch)

    def record(run, place):
        beams = run()
        return lambda: beams  # a CUDA graph holds no Python function either

    monkeypatch.setattr(graph, "record", record)
    model, trie, vocab = system()
    recommend(model, *left_padded(9), trie=trie, vocab=vocab, num_beams=3, cuda_graph=True)
    kept, alive = weakref.ref(ModelState.of(model).recordings), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert kept() is None


def test_a_recording_keeps_what_it_reads(monkeypatch):
    """A CUDA graph knows addresses, not tensors: catalogue, tokens and weights must outlive it."""
    can_record_anywhere(monkeypatch)

    def record(run, place):
        beams = run()
        return lambda: beams

    monkeypatch.setattr(graph, "record", record)
    model, trie, vocab = system()
    codes, weight = trie.tensors.codes.data_ptr(), model.lm_head.weight.data_ptr()
    recommend(model, *left_padded(9), trie=trie, vocab=vocab, num_beams=3, cuda_graph=True)
    tensors = [weakref.ref(t) for t in trie.tensors]
    del trie
    gc.collect()
    assert all(tensor() is not None for tensor in tensors)
    kept = ModelState.of(model).recordings._kept
    ((_, recording),) = kept.values()
    plan, weights = recording._kept
    assert [shape.vocab for shape in kept] == [vocab]
    assert plan.trie.codes.data_ptr() == codes
    assert weight in [t.data_ptr() for t in weights]
