"""Recorded steps of rows on a device give what forward passes of each row alone give."""

import warnings

import pytest
import torch

from crs_fast.decode.lm import recorded_rows
from python_tests.decode.lm.test_recorded_rows import VOCAB, Sequences
from python_tests.helpers import tiny_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("attention", ["tree", "mask"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2", "mistral"])
@torch.no_grad()
def test_rows_that_join_grow_and_leave(kind, attention, monkeypatch):
    monkeypatch.setattr(recorded_rows, "_WIDTH_STEP", 16)
    rows = Sequences(tiny_model(kind, VOCAB).cuda(), attention, atol=2e-3, rtol=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not recorded.*")
        rows.join(9, 4, 6)
        rows.feed(9)  # past 16 positions
        rows.join(3, 14)
        rows.feed(2)
        for gone in ([0], [2, 1], [1]):
            rows.leave(*gone)
            rows.feed(2)
        rows.leave(*range(len(rows.tokens)))
        rows.join(5, 6)
        rows.feed(3)
