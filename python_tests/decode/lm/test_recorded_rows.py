"""Recorded steps of rows, with a stand-in for the CUDA graph: what they give and when they are
recorded. That the device's own recordings give the same is in `test_recorded_rows_gpu.py`."""

import warnings

import pytest
import torch

from crs_fast.decode import Prompt, TreeModel, right_pad
from crs_fast.decode.lm import recorded_rows, recordings
from crs_fast.decode.lm.model_state import ModelState
from crs_fast.decode.lm.recorded_rows import RecordedRows
from crs_fast.decode.lm.recordings import MAX_STEP_RECORDINGS
from python_tests.decode.recording_doubles import record_on_tape
from python_tests.helpers import tiny_model

VOCAB = 40


@pytest.fixture
def made(monkeypatch):
    """The steps that were recorded."""
    runs = []

    def record(run, place):
        runs.append(run)
        return record_on_tape(run, place)

    monkeypatch.setattr(recorded_rows, "record", record)
    monkeypatch.setattr(recorded_rows, "_WIDTH_STEP", 16)
    monkeypatch.setattr(recorded_rows, "device_memory", lambda device: 1 << 40)
    return runs


class Sequences:
    """Rows that are fed random tokens, each compared with a forward pass of its own."""

    def __init__(self, model, attention="tree", atol=2e-4, rtol=1e-4):
        self.tolerance = {"atol": atol, "rtol": rtol}
        self.model, self.rows = model, RecordedRows(TreeModel(model, attention))
        self.tokens, self.generator = [], torch.Generator().manual_seed(0)

    def draw(self, n):
        return torch.randint(VOCAB, (n,), generator=self.generator).tolist()

    def join(self, *lengths):
        new = [self.draw(n) for n in lengths]
        ids, mask = (part.to(self.model.device) for part in right_pad(new, 0))
        self.rows.join(Prompt(self.model, ids, mask, room=2))
        self.tokens += new

    def leave(self, *rows):
        order = self.rows.leave(rows)
        self.tokens = [self.tokens[row] for row in order]

    def feed(self, times=1):
        for _ in range(times):
            ids = self.draw(len(self.tokens))
            self.tokens = [[*s, token] for s, token in zip(self.tokens, ids, strict=True)]
            device = self.model.device
            hidden = self.rows.feed(torch.tensor(ids, device=device))
            for got, tokens in zip(self.rows.lm.head(hidden), self.tokens, strict=True):
                alone = self.model(torch.tensor([tokens], device=device), use_cache=False)
                torch.testing.assert_close(got, alone.logits[0, -1], **self.tolerance)


@pytest.mark.parametrize("attention", ["tree", "mask"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "neox"])
@torch.no_grad()
def test_rows_that_join_grow_and_leave(made, kind, attention):
    rows = Sequences(tiny_model(kind, VOCAB), attention)
    rows.join(9, 4, 6)
    rows.feed(5)
    assert len(made) == 1  # 4 rows, 16 positions
    rows.join(3, 14)
    rows.feed(1)
    assert len(made) == 2  # 8 rows
    rows.feed(3)
    assert len(made) == 3  # 32 positions
    for gone in ([0], [2, 1], [1]):
        rows.leave(*gone)
        rows.feed()
    rows.join(5)
    rows.feed(4)
    rows.leave(*range(len(rows.tokens)))
    rows.join(5, 6, 7)
    rows.feed()


@torch.no_grad()
def test_what_was_recorded_serves_rows_that_come_later(made):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9, 5, 7, 3)
    rows.feed(3)
    for lengths in ((4, 5, 6, 7), (9, 3, 2), (1, 1, 12)):
        rows.leave(*range(len(rows.tokens)))
        rows.join(*lengths)
        rows.feed(3)
        rows.leave(1)
        rows.join(8)
        rows.feed()
    assert len(made) == 1


@torch.no_grad()
def test_buffers_are_as_large_as_the_padded_shape(made):
    """Rounded once, when the prompts join: 4 rows and 48 positions for 3 rows of 33."""
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(33, 5)
    rows.join(32)
    layers = rows.rows._cache.layers
    buffers = [states for layer in layers for states in (layer.keys, layer.values)]
    assert {(len(states), states.shape[2]) for states in buffers} == {(4, 48)}
    assert rows.rows._visible.shape == (4, 48)
    rows.feed(2)
    assert rows.rows.width == 48
    after = [states for layer in layers for states in (layer.keys, layer.values)]
    assert [states.data_ptr() for states in after] == [states.data_ptr() for states in buffers]
    assert len(made) == 1


@pytest.mark.parametrize(
    ("length", "width"), [(2, 256), (256, 256), (257, 512), (1025, 1280), (4097, 4608)]
)
def test_positions_are_padded_by_256_or_an_eighth(length, width):
    rows = RecordedRows(TreeModel(tiny_model("llama", VOCAB)))
    assert rows.room((0, 0), 3, length) == (4, width)
    assert rows.room((0, 0), 4, width) == (4, width)


@torch.no_grad()
def test_a_result_outlives_the_next_step(made):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(3, 5)
    kept = rows.rows.feed(torch.tensor([1, 2]))
    before = kept.clone()
    rows.rows.feed(torch.tensor([3, 4]))
    assert torch.equal(kept, before)


@torch.no_grad()
def test_numbers_that_are_none_stay_in_their_row(made):
    """Attention multiplies what a row does not see by 0."""
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9, 5, 12)
    rows.feed()
    for layer in rows.rows._cache.layers:
        layer.keys[2:], layer.values[2:] = torch.nan, torch.nan
    rows.leave(2)
    rows.join(3)
    rows.feed(2)
    rows.join(2)
    rows.feed(2)


@torch.no_grad()
def test_memory_goes_back_if_it_is_much(made, monkeypatch):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9)
    rows.feed()
    monkeypatch.setattr(recorded_rows, "device_memory", lambda device: 400)
    rows.leave(0)
    assert not rows.rows._cache.layers
    rows.join(9, 4)
    rows.feed(2)
    assert len(made) == 2


@torch.no_grad()
def test_a_quarter_of_the_memory_may_stay(made, monkeypatch):
    rows = Sequences(tiny_model("llama", VOCAB))
    layers = rows.rows._cache.layers
    for share, stays in ((4, True), (3, False)):
        rows.join(9)
        rows.feed()
        most = share * sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        monkeypatch.setattr(recorded_rows, "device_memory", lambda device, most=most: most)
        rows.leave(0)
        assert bool(layers) is stays


@torch.no_grad()
def test_recordings_go_with_their_buffers(made):
    model = tiny_model("llama", VOCAB)
    kept = ModelState.of(model).step_recordings._kept
    rows, others = Sequences(model), Sequences(model)
    rows.join(9)
    rows.feed()
    others.join(9)
    others.feed()
    assert len(kept) == 2
    rows.join(3, 4)  # more rows than the buffers have
    rows.feed()
    assert len(kept) == 2
    rows.leave(1, 2)
    rows.feed()
    assert len(kept) == 3  # the buffers stay as they are
    made.clear()  # which holds them
    del rows
    others.join(3)
    others.feed()
    assert len(kept) == 1


@torch.no_grad()
def test_a_model_that_changes_is_recorded_anew(made):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9)
    rows.feed(2)
    model = rows.model
    model.model.norm.weight.mul_(0.5)  # in place
    rows.feed()
    assert len(made) == 1
    model.model.norm.weight = torch.nn.Parameter(torch.rand_like(model.model.norm.weight))
    rows.leave(0)
    rows.join(9)
    rows.feed()
    assert len(made) == 2


@torch.no_grad()
def test_a_model_is_compared_when_rows_join(made, monkeypatch):
    """That takes longer than it takes to launch some kernels."""
    compared, real = [], recordings.fingerprint

    def fingerprint(model):
        compared.append(model)
        return real(model)

    monkeypatch.setattr(recordings, "fingerprint", fingerprint)
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(5)
    rows.feed(3)
    assert len(compared) == 1  # when it was recorded
    rows.leave(0)
    rows.join(5)
    rows.feed(3)
    assert len(compared) == 2


@torch.no_grad()
def test_a_change_that_a_new_recording_shows_counts_for_all(made):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9, 5, 7)
    rows.leave(1, 2)
    rows.feed()
    rows.leave(0)
    rows.join(5, 6, 7)
    rows.feed()
    assert len(made) == 2  # 1 row, 4 rows
    norm = rows.model.model.norm
    norm.weight = torch.nn.Parameter(torch.rand_like(norm.weight))
    rows.leave(2)
    rows.feed()
    rows.leave(1)
    rows.feed()
    assert len(made) == 4  # 2 rows, and 1 row again


@torch.no_grad()
def test_a_model_keeps_its_newest_recordings(made):
    model = tiny_model("llama", VOCAB)
    for _ in range(MAX_STEP_RECORDINGS + 1):
        rows = Sequences(model)
        rows.join(2)
        rows.rows.feed(torch.tensor([1]))
    state = ModelState.of(model)
    assert len(state.step_recordings._kept) == MAX_STEP_RECORDINGS
    assert not state.recordings._kept


@torch.no_grad()
def test_what_can_not_be_recorded_runs_eagerly_and_is_not_tried_again(monkeypatch):
    tries = []

    def record(run, place):
        tries.append(run)
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(recorded_rows, "record", record)
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9, 5)
    with pytest.warns(UserWarning, match="steps are not recorded .*not permitted when") as caught:
        rows.feed()
    assert len(caught) == 1
    rows.join(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows.feed(3)
    assert len(tries) == 1


@torch.no_grad()
def test_an_error_of_the_model_is_no_failure_of_the_recording(made):
    rows = Sequences(tiny_model("llama", VOCAB))
    rows.join(9)

    def fails(module, inputs):
        raise RuntimeError("no")

    handle = rows.model.model.norm.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no"):
        rows.rows.feed(torch.tensor([1]))
    handle.remove()
    assert not ModelState.of(rows.model).failures
