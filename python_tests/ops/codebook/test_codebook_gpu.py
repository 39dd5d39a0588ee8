"""The compiled Triton lookup against the CPU's, which the oracle covers. Needs torch and pytest."""

import pytest
import torch

from crs_fast.ops import residual_codes, residual_lookup, residual_statistics
from crs_fast.ops.codebook import dispatch

pytestmark = pytest.mark.gpu


def _random(n: int, dim: int, levels: int, k: int) -> tuple:
    g = torch.Generator().manual_seed(n + dim)
    scale = 0.6 ** torch.arange(levels)[:, None, None]
    return torch.randn(n, dim, generator=g), torch.randn(levels, k, dim, generator=g) * scale


def _agrees(x: torch.Tensor, books: torch.Tensor) -> None:
    want = residual_lookup(x, books)
    for got, expected in zip(residual_lookup(x.cuda(), books.cuda()), want, strict=True):
        assert torch.equal(got.cpu(), expected)
    assert torch.equal(residual_codes(x.cuda(), books.cuda()).cpu(), want[0])


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (129, 3, 2, 5), (100_000, 32, 4, 256), (20_000, 128, 3, 2048),
     (5000, 384, 3, 256), (300, 4096, 2, 100), (200, 7, 1, 65_536)],
)  # fmt: skip
def test_random(shape):
    _agrees(*_random(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x, books = _random(1000, 20, 3, 32)
    _agrees(x.to(dtype), books.to(dtype))


def test_awkward_data():
    x, books = _random(2000, 48, 3, 64)
    books[:, 32:] = books[:, :32] + 1e-6
    _agrees(x, books)
    books[:, 32:] = books[:, :32]
    _agrees(x, books)
    _agrees(x * 3e37, books * 3e37)
    books[0] += 100
    _agrees(x + 100, books)
    _agrees(x * 10 ** torch.linspace(-5, 5, 2000)[:, None], books)
    _agrees(x[::2], books)


@pytest.mark.parametrize("sums", dispatch.SUMS.designs)
def test_statistics_and_their_repeatability(sums):
    x, books = _random(30_000, 24, 3, 64)
    want = residual_statistics(x, books)
    with dispatch.SUMS.using(sums):
        first, second = (residual_statistics(x.cuda(), books.cuda()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[2].cpu(), want[2])
    torch.testing.assert_close(first[3].cpu(), want[3], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_refuses_what_is_not_finite(precision):
    x, books = _random(3000, 24, 2, 16)
    x[2500, 5] = torch.nan
    with pytest.raises(ValueError, match="x must be finite"):
        residual_lookup(x.cuda(), books.cuda(), precision)


def test_memory_is_rows_by_levels():
    x, books = (t.cuda() for t in _random(1_000_000, 32, 4, 256))
    residual_codes(x, books)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    residual_codes(x, books)
    assert torch.cuda.max_memory_allocated() - before < 1_000_000 * (4 + 2) * 8
