import pytest
import torch

from crs_fast import _native
from crs_fast.ops.codebook import (
    eager,
    reference,
    residual_codes,
    residual_lookup,
    residual_statistics,
)


def _agrees(x: torch.Tensor, books: torch.Tensor) -> None:
    """Every implementation that takes these inputs gives the oracle's codes and residual."""
    want_codes, want_residual = reference.residual_lookup(x, books)
    in_torch = eager.lookup(x, books, exact=True)
    for codes, residual, *_ in (residual_lookup(x, books), in_torch):
        assert codes.dtype == torch.int64
        assert torch.equal(codes, want_codes)
        assert torch.equal(residual, want_residual.to(residual.dtype))
    assert torch.equal(residual_codes(x, books), want_codes)


def _rechecked(x: torch.Tensor, books: torch.Tensor) -> int:
    """(Row, level) pairs that the native kernel measured again in float64."""
    codes = torch.empty(len(x), len(books), dtype=torch.int64)
    native = _native.load()
    finite, count = native.residual_lookup(
        x=x.data_ptr(), dtype=native.DType.float32, rows=len(x), dim=x.shape[1],
        row_stride=x.stride(0), books=books.data_ptr(), levels=len(books), codes=books.shape[1],
        exact=True, threads=1, out=codes.data_ptr(), residual=0, counts=0, sums=0,
    )  # fmt: skip
    assert finite
    return count


def _random(n: int, dim: int, levels: int, k: int, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)
    scale = 0.6 ** torch.arange(levels)[:, None, None]
    return torch.randn(n, dim, generator=g), torch.randn(levels, k, dim, generator=g) * scale


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (7, 3, 2, 5), (129, 32, 4, 64), (900, 65, 3, 33), (1, 4096, 2, 9),
     (131, 97, 2, 64), (50, 192, 2, 130), (40, 300, 5, 2), (3, 5, 1, 3000), (20, 1, 3, 17)]
)  # fmt: skip
def test_random(shape):
    _agrees(*_random(*shape))


def test_mean_100():
    x, books = _random(700, 48, 3, 32)
    books[0] += 100
    _agrees(x + 100, books)


def test_mean_100_needs_few_rechecks(monkeypatch):
    x, books = _random(700, 48, 1, 32)
    measured = []
    recheck = eager.Level._recheck
    monkeypatch.setattr(
        eager.Level,
        "_recheck",
        lambda self, rest, close: measured.append(len(rest)) or recheck(self, rest, close),
    )
    eager.lookup(x + 100, books + 100, exact=True)
    assert sum(measured) < 70
    assert _rechecked(x + 100, books + 100) < 7


def test_duplicate_codewords_go_to_the_lower_code():
    x, books = _random(300, 16, 3, 24)
    books[:, 12:] = books[:, :12]
    codes, _ = residual_lookup(x, books)
    assert int(codes.max()) < 12
    _agrees(x, books)


def test_equidistant_goes_to_the_lower_code():
    books = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    codes, _ = residual_lookup(torch.zeros(2, 2), books)
    assert codes.tolist() == [[1], [1]]


@pytest.mark.parametrize("gap", [1e-4, 1e-7, 1e-10, 1e-14])
def test_near_duplicate_codewords(gap):
    x, books = _random(500, 32, 2, 40)
    books = books.double()
    noise = torch.randn(books[:, 20:].shape, generator=torch.Generator().manual_seed(1))
    books[:, 20:] = books[:, :20] + gap * noise.double()
    _agrees(x.double(), books)


def test_float32_alone_would_be_wrong():
    x, books = _random(500, 32, 1, 40)
    books = books.double()
    books[:, 20:] = books[:, :20] + 1e-10
    naive = (books[0].float().square().sum(-1) - 2 * x @ books[0].float().T).argmin(-1)
    want, _ = reference.residual_lookup(x.double(), books)
    assert not torch.equal(naive, want[:, 0])


def test_unequal_norms():
    x, books = _random(400, 24, 3, 50)
    books *= 10 ** torch.linspace(-6, 6, 50)[:, None]
    x *= 10 ** torch.linspace(-5, 5, 400)[:, None]
    _agrees(x, books)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e17, 1e19, 3e37])
def test_values_at_the_ends_of_float32(scale):
    x, books = _random(200, 4, 2, 16)
    _agrees(x * scale, books * scale)


def test_strided():
    x, books = _random(258, 40, 3, 32)
    _agrees(x[::2, 5:25].flip(0), books.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x, books = _random(300, 20, 3, 32)
    _agrees(x.to(dtype), books.to(dtype))
    _agrees(x.to(dtype), books)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert residual_lookup(x.to(dtype), books)[1].dtype == expected


def test_blocks_change_nothing(monkeypatch):
    x, books = _random(131, 16, 3, 32)
    whole = eager.lookup(x, books, exact=True)
    monkeypatch.setattr(eager, "BLOCK_ELEMENTS", 64)
    blocked = eager.lookup(x, books, exact=True)
    assert torch.equal(whole[0], blocked[0])
    assert torch.equal(whole[1], blocked[1])


def test_memory_never_holds_rows_by_codes(monkeypatch):
    largest = []
    nearest = eager.Level.nearest
    monkeypatch.setattr(
        eager.Level,
        "nearest",
        lambda self, rest, exact: largest.append(len(rest)) or nearest(self, rest, exact),
    )
    eager.lookup(torch.randn(3000, 2), torch.randn(1, 8192, 2), exact=True)
    assert max(largest) * 8192 <= eager.BLOCK_ELEMENTS < 3000 * 8192


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_low_matmul_precision_stays_exact(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        _agrees(*_random(400, 64, 3, 64))
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_stays_exact():
    x, books = _random(400, 64, 3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _agrees(x, books)


def test_native_rechecks_few_rows():
    # The bound must hold, but not be so wide that everything is measured twice.
    x, books = _random(4000, 384, 3, 256)
    assert _rechecked(x, books) < 0.01 * 3 * 4000
    x, books = _random(4000, 32, 4, 256)
    assert _rechecked(x, books) < 0.001 * 4 * 4000


def test_more_duplicates_than_lanes():
    x, books = _random(100, 40, 2, 10)
    books = books.repeat(1, 30, 1)
    assert int(residual_codes(x, books).max()) < 10
    _agrees(x, books)


def test_equal_rows_get_equal_codes_anywhere_in_a_block():
    x, books = _random(1, 33, 3, 100)
    codes = residual_codes(x.expand(500, 33), books)
    assert bool((codes == codes[0]).all())


def test_fast_is_nearly_exact():
    x, books = _random(3000, 32, 4, 256)
    for got in (residual_lookup(x, books, "fast"), eager.lookup(x, books, exact=False)):
        agree = (got[0] == reference.residual_lookup(x, books)[0]).all(-1).float().mean()
        assert float(agree) > 0.995
        want = x.double() - books.double()[torch.arange(4), got[0]].sum(1)
        torch.testing.assert_close(got[1], want.float())


def test_fast_ties_go_to_the_lower_code():
    x, books = _random(300, 16, 3, 24)
    books[:, 12:] = books[:, :12]
    assert int(residual_codes(x, books, "fast").max()) < 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (3, 7, 2, 40), (5000, 12, 3, 20)])
def test_statistics(shape, dtype):
    x, books = (t.to(dtype) for t in _random(*shape))
    codes, residual, counts, sums = residual_statistics(x, books)
    want_codes, want_residual = reference.residual_lookup(x, books)
    assert torch.equal(codes, want_codes)
    assert torch.equal(residual, want_residual.to(residual.dtype))
    rest = x.double()
    for level, book in enumerate(books.double()):
        chosen = codes[:, level]
        hot = torch.nn.functional.one_hot(chosen, len(book)).double()  # [N, K]
        assert torch.equal(counts[level], hot.sum(0).long())
        torch.testing.assert_close(sums[level], hot.T @ rest, rtol=1e-12, atol=1e-11)
        rest = rest - book[chosen]


def test_statistics_do_not_depend_on_threads():
    x, books = _random(20_000, 24, 3, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(residual_statistics(x, books))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype, exact):
    x, books = (t.to(dtype) for t in _random(9, 5, 2, 7))
    for wanted in (True, False):
        torch.library.opcheck(torch.ops.crs_fast.residual_lookup, (x, books, exact, wanted))
    torch.library.opcheck(torch.ops.crs_fast.residual_statistics, (x, books, exact))


def test_compiles_in_one_graph():
    x, books = _random(40, 8, 2, 6)
    compiled = torch.compile(
        lambda a, b: residual_lookup(a * 2, b), backend="aot_eager", fullgraph=True
    )
    for got, want in zip(compiled(x, books), residual_lookup(x * 2, books), strict=True):
        assert torch.equal(got, want)


def test_without_the_native_module(monkeypatch):
    x, books = _random(40, 8, 2, 6)
    want = residual_lookup(x, books)
    monkeypatch.setattr(_native, "load", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(residual_lookup(x, books), want, strict=True))


def test_no_rows():
    codes, residual = residual_lookup(torch.empty(0, 5), torch.randn(3, 4, 5))
    assert codes.shape == (0, 3)
    assert residual.shape == (0, 5)


def test_inputs_stay_as_they_were():
    x, books = _random(20, 8, 2, 6)
    copies = x.clone(), books.clone()
    residual_lookup(x, books)
    assert torch.equal(x, copies[0])
    assert torch.equal(books, copies[1])


@pytest.mark.parametrize(
    ("x", "books", "match"),
    [
        ([[1.0]], torch.ones(1, 1, 1), "x must be a torch tensor"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(1, 2, 3), "x must be float16"),
        (torch.ones(2, 3), torch.ones(1, 2, 3).long(), "codebooks must be float16"),
        (torch.ones(3), torch.ones(1, 2, 3), r"x must have shape \[N, D\]"),
        (torch.ones(2, 3), torch.ones(2, 3), r"codebooks must have shape \[L, K, D\]"),
        (torch.ones(2, 3), torch.ones(1, 2, 4), "x must have the codebooks' 4"),
        (torch.ones(2, 3), torch.ones(0, 2, 3), "at least one level"),
        (torch.ones(2, 3), torch.ones(1, 0, 3), "at least one level"),
        (torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2, 2), "x must be finite"),
        (torch.tensor([[1.0, -torch.inf]]), torch.ones(1, 2, 2), "x must be finite"),
        (torch.tensor([[torch.nan]]).double(), torch.ones(1, 2, 1), "x must be finite"),
        (torch.ones(1, 1), torch.tensor([[[torch.inf]]]), "codebooks must be finite"),
    ],
)
def test_bad_input(x, books, match):
    with pytest.raises(ValueError, match=f"residual_lookup: .*{match}"):
        residual_lookup(x, books)


def test_unknown_precision():
    with pytest.raises(ValueError, match="residual_lookup: precision must be one of"):
        residual_lookup(torch.ones(1, 1), torch.ones(1, 1, 1), "quick")


def test_one_bad_row_among_many():
    x, books = _random(3000, 8, 2, 6)
    x[2900, 3] = torch.nan
    with pytest.raises(ValueError, match="x must be finite"):
        residual_lookup(x, books)
