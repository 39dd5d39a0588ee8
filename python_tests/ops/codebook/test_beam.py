import itertools

import pytest
import torch

from crs_fast.ops import beam_lookup, residual_lookup
from crs_fast.ops.codebook import beam


def _random(n: int, dim: int, levels: int, k: int) -> tuple:
    g = torch.Generator().manual_seed(n)
    scale = 0.6 ** torch.arange(levels)[:, None, None]
    return torch.randn(n, dim, generator=g), torch.randn(levels, k, dim, generator=g) * scale


def _error(x, books, codes):
    return (x.double() - books.double()[torch.arange(len(books)), codes].sum(1)).square().sum(-1)


def test_one_beam_is_residual_lookup(monkeypatch):
    x, books = _random(200, 16, 3, 20)
    want = residual_lookup(x, books)
    monkeypatch.setattr(beam, "BLOCK_ELEMENTS", 999)
    for got, expected in zip(beam_lookup(x, books, 1), want, strict=True):
        assert torch.equal(got, expected)


def test_enough_beams_find_the_best_there_is():
    x, books = _random(30, 5, 3, 4)
    paths = torch.tensor(list(itertools.product(range(4), repeat=3)))  # [64, 3]
    words = books.double()[torch.arange(3), paths].sum(1)
    best = (x.double()[:, None] - words).square().sum(-1).min(-1).values
    codes, residual = beam_lookup(x, books, 16)
    torch.testing.assert_close(_error(x, books, codes), best)
    torch.testing.assert_close(residual.double().square().sum(-1), best, rtol=1e-6, atol=1e-6)


def test_more_beams_are_better():
    x, books = _random(500, 16, 4, 16)
    errors = [float(_error(x, books, beam_lookup(x, books, b)[0]).mean()) for b in (1, 2, 5, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.97 * errors[0]


def test_ties_go_to_the_lower_code():
    x, books = _random(50, 8, 2, 12)
    books[:, 6:] = books[:, :6]
    assert int(beam_lookup(x, books, 4)[0].max()) < 6


def test_bad_input():
    x, books = _random(5, 3, 2, 4)
    with pytest.raises(ValueError, match="beam_lookup: beams must be"):
        beam_lookup(x, books, 0)
    with pytest.raises(ValueError, match="beam_lookup: x must be finite"):
        beam_lookup(x * torch.nan, books, 2)
    with pytest.raises(ValueError, match="beam_lookup: x must have the codebooks' 3"):
        beam_lookup(x[:, :2], books, 2)
    assert beam_lookup(x[:0], books, 2)[0].shape == (0, 2)
