"""The Triton kernels in Triton's interpreter, which runs them on the CPU.

It multiplies in float32; there the kernel cuts its operands to TF32 itself, so that the rechecks
have as much to repair as on a GPU.
"""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from crs_fast.ops.codebook import dispatch, eager, reference, triton_statistics
from crs_fast.ops.codebook import triton as codebook_triton

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="test_codebook_gpu.py runs the compiled kernels"
    ),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


def _random(n: int, dim: int, levels: int, k: int, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)
    scale = 0.6 ** torch.arange(levels)[:, None, None]
    return torch.randn(n, dim, generator=g), torch.randn(levels, k, dim, generator=g) * scale


def _agrees(x: torch.Tensor, books: torch.Tensor) -> None:
    codes, residual, bad = codebook_triton.lookup(x, books, exact=True)
    want_codes, want_residual = reference.residual_lookup(x, books)
    assert int(bad) == 0
    assert torch.equal(codes, want_codes)
    assert torch.equal(residual, want_residual.float())


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (7, 3, 2, 5), (129, 32, 4, 64), (70, 65, 3, 33), (65, 200, 2, 130),
     (3, 5, 1, 300)],
)  # fmt: skip
def test_random(shape):
    _agrees(*_random(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    x, books = _random(66, 20, 3, 32)
    _agrees(x.to(dtype), books.to(dtype))
    _agrees(x.to(dtype), books)


def test_strided():
    x, books = _random(130, 40, 2, 32)
    _agrees(x[::2, 5:25], books.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2])


def test_mean_100():
    x, books = _random(130, 48, 3, 32)
    books[0] += 100
    _agrees(x + 100, books)


def test_near_duplicate_codewords():
    for gap in (1e-2, 1e-4, 1e-6):
        x, books = _random(100, 32, 2, 40)
        noise = torch.randn(books[:, 20:].shape, generator=torch.Generator().manual_seed(1))
        books[:, 20:] = books[:, :20] + gap * noise
        _agrees(x, books)


def test_duplicate_codewords_go_to_the_lower_code():
    x, books = _random(80, 16, 2, 24)
    books[:, 12:] = books[:, :12]
    _agrees(x, books)
    # Whole numbers, and sixteenths about the mean of 16: sums are exact in any order, which BLAS
    # chooses by processor and column, so that equal codewords score alike without a recheck.
    x, books = (4 * x).round(), (4 * books[:, :16]).round()
    books[:, 8:] = books[:, :8]
    codes = codebook_triton.lookup(x, books, exact=False)[0]
    assert int(codes.max()) < 8
    assert torch.equal(codes, reference.residual_lookup(x, books)[0])


def test_many_duplicates():
    x, books = _random(20, 16, 2, 10)
    _agrees(x, books.repeat(1, 20, 1))


def test_unequal_norms():
    x, books = _random(130, 24, 3, 50)
    books *= 10 ** torch.linspace(-6, 6, 50)[:, None]
    x *= 10 ** torch.linspace(-5, 5, 130)[:, None]
    _agrees(x, books)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e17, 1e19, 3e37])
def test_values_at_the_ends_of_float32(scale):
    x, books = _random(40, 4, 2, 16)
    _agrees(x * scale, books * scale)


def test_tiny_rows_and_huge_codewords():
    # The squares of the rows underflow; the products with the codewords do not.
    x, books = _random(60, 8, 1, 40)
    _agrees(x * 1e-24, books * 1e-6 + 1e3)
    _agrees(x * 1e-24, books * 1e8)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [20, 130])
def test_values_that_are_not_finite_raise_the_flag(exact, value, dim):
    x, books = _random(70, dim, 2, 16)
    assert int(codebook_triton.lookup(x, books, exact)[2]) == 0
    x[66, 3] = value
    assert int(codebook_triton.lookup(x, books, exact)[2]) == 1


@pytest.mark.parametrize("name", list(codebook_triton.DESIGN.designs)[1:])
def test_every_design_is_exact(name):
    with codebook_triton.DESIGN.using(name):
        _agrees(*_random(67, 9, 3, 70))
        x, books = _random(20, 8, 2, 12)
        books[:, 6:] = books[:, :6] + 1e-6
        _agrees(x, books)
        _agrees(x * 10 ** torch.linspace(-5, 5, 20)[:, None], books)


@pytest.mark.parametrize("exact", [True, False])
def test_values_that_are_not_finite_raise_the_flag_with_three_products(exact):
    x, books = _random(5, 20, 2, 16)
    x[3, 3] = float("inf")
    with codebook_triton.DESIGN.using("tf32x3, kept"):
        assert int(codebook_triton.lookup(x, books, exact)[2]) == 1


def test_fast_codes_are_those_of_tf32_in_every_design():
    x, books = _random(70, 32, 2, 64)
    today = codebook_triton.lookup(x, books, exact=False)[0]
    with codebook_triton.DESIGN.using("tf32x3, kept"):
        assert torch.equal(codebook_triton.lookup(x, books, exact=False)[0], today)


def test_fast_is_nearly_exact():
    x, books = _random(400, 32, 3, 64)
    codes, residual, _ = codebook_triton.lookup(x, books, exact=False)
    agree = codes == reference.residual_lookup(x, books)[0]
    assert 0.95 < float(agree.all(-1).float().mean()) < 1.0  # TF32 alone is not enough
    want = x.double() - books.double()[torch.arange(3), codes].sum(1)
    assert torch.equal(residual, want.float())


def test_no_rows_and_no_residual():
    x, books = _random(40, 5, 3, 4)
    codes, residual, _ = codebook_triton.lookup(x[:0], books, exact=True)
    assert codes.shape == (0, 3)
    codes, residual, _ = codebook_triton.lookup(x, books, exact=True, want_residual=False)
    assert torch.equal(codes, reference.residual_lookup(x, books)[0])
    assert residual.shape == (0, 5)


def _random_with_codes(n: int, dim: int, levels: int, k: int) -> tuple:
    x, books = _random(n, dim, levels, k)
    return x, books, reference.residual_lookup(x, books)[0]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 2, 5), (129, 32, 4, 9), (33, 70, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_and_sums(shape, dtype):
    x, books, _ = _random_with_codes(*shape)
    x = x.to(dtype)
    codes, want_residual = reference.residual_lookup(x, books)
    residual, counts, sums = triton_statistics.statistics(x, books, codes)
    want_counts, want_sums = eager.statistics(x, books, codes)
    assert torch.equal(residual, want_residual.float())
    assert torch.equal(counts, want_counts)
    torch.testing.assert_close(sums, want_sums, rtol=1e-13, atol=1e-13)
    assert torch.equal(sums.float(), want_sums.float())


def test_sums_do_not_depend_on_the_order_of_rows():
    x, books, codes = _random_with_codes(150, 12, 3, 8)
    x = x * 10 ** torch.linspace(-6, 6, 12)  # each column has a unit of its own
    first = triton_statistics.statistics(x, books, codes)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    second = triton_statistics.statistics(x[order], books, codes[order])
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
    want = eager.statistics(x, books, codes)[1]
    error = (first[2] - want).abs().amax((0, 1))
    # Half a unit per row at most, and the last digit of the sums themselves.
    units = 1 / triton_statistics._scales(x, books)
    assert bool((error <= 75 * units + 1e-14 * want.abs().amax((0, 1))).all())


@pytest.mark.parametrize("scale", [0.0, 1e-38, 3e37])
def test_sums_at_the_ends_of_float32(scale):
    x, books, codes = _random_with_codes(40, 4, 2, 3)
    x, books = x * scale, books * scale
    sums = triton_statistics.statistics(x, books, codes)[2]
    want = eager.statistics(x, books, codes)[1]
    torch.testing.assert_close(sums, want, rtol=1e-9, atol=1e-13 * scale)


def test_statistics_of_strided_rows_and_of_none():
    x, books, codes = _random_with_codes(60, 40, 2, 5)
    wide = torch.full((120, 80), torch.nan)
    wide[::2, ::2] = x
    got = triton_statistics.statistics(wide[::2, ::2], books, codes)
    want = triton_statistics.statistics(x, books, codes)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    residual, counts, sums = triton_statistics.statistics(x[:0], books, codes[:0])
    assert residual.shape == (0, 40)
    assert not counts.any()
    assert not sums.any()


def test_residual_statistics_takes_the_pass_in_units(monkeypatch):
    """The op as on CUDA, where C++ does not serve."""
    x, books = _random(50, 6, 2, 7)
    want = dispatch._statistics("residual_statistics", x, books, True)
    monkeypatch.setattr(dispatch, "_native_cpu", lambda *arguments, **named: None)
    monkeypatch.setattr(dispatch, "_triton_serves", lambda x, books: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in dispatch.SUMS.designs:
        with dispatch.SUMS.using(name):
            got = dispatch._statistics("residual_statistics", x, books, True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    x[3, 3] = torch.nan
    with pytest.raises(ValueError, match="x must be finite"), dispatch.SUMS.using("in units"):
        dispatch._statistics("residual_statistics", x, books, True)


def _to_tf32(x: torch.Tensor, how: str) -> torch.Tensor:
    bits = x.view(torch.int32)
    if how == "round":
        bits = bits + (1 << 12)
    return (bits & -(1 << 13)).view(torch.float32)


def _summed(m: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """m [n, D] @ c [K, D].T, added up one by one in float32."""
    return (m[:, None] * c[None]).cumsum(-1)[..., -1]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("how", ["cut", "round"])
@pytest.mark.parametrize("dim", [1, 8, 32, 384, 2048])
def test_the_margin_covers_tf32(how, dim, precision):
    """Scores of operands with a 10-bit mantissa, summed in float32, against float64."""
    worst = 0.0
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        m = torch.randn(60, dim, generator=g)
        c = torch.randn(50, dim, generator=g) * torch.rand(50, 1, generator=g)
        # With equal signs the errors of cutting add up; with these mantissas they are largest.
        if seed % 2:
            m, c = m.abs(), c.abs()
        if seed == 3:
            m = c = torch.full((4, dim), 1 + 2.0**-10 - 2.0**-23)
        half = c.double().square().sum(-1) / 2
        want = m.double() @ c.double().T - half
        large_m, large_c = _to_tf32(m, how), _to_tf32(c, how)
        got = _summed(large_m, large_c)
        if precision == "tf32x3":
            got += _summed(_to_tf32(m - large_m, how), large_c)
            got += _summed(large_m, _to_tf32(c - large_c, how))
        got -= half.float()
        a, b = codebook_triton.margins(dim, 1, precision)
        norm, most = m.double().norm(dim=-1), c.double().norm(dim=-1).max()
        bound = a * norm * most + b * most * most  # of two scores' difference
        error = (got.double() - want).abs().amax(-1) * 2
        assert bool((error <= bound).all())
        worst = max(worst, float((error / bound).max()))
    # And is not far too wide; of "tf32x3", most is room for the tensor cores' own sums.
    assert how == "round" or precision == "tf32x3" or worst > 0.4


_COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from crs_fast.ops.codebook import triton as ct
from crs_fast.ops.codebook import triton_statistics as ts

types = dict(x="*fp32", codes="*i64", listed="*i64", state="*i32", N="i32", stride_n="i32",
             stride_d="i32", margin_norm="fp32", margin_square="fp32", scales="*fp64",
             counts="*i64", sums="*i64")
shape = dict(D=40, K=100, L=3)
for fn, extra in (
    (ct._score, dict(BN=64, BK=64, BD=64, BITS=1, EXACT=True, PRECISION="tf32x3", KEEPS=True,
                     CUT=False)),
    (ct._score, dict(BN=64, BK=64, BD=64, BITS=1, EXACT=False, PRECISION="tf32", KEEPS=False,
                     CUT=False)),
    (ct._recheck, dict(BK=32, BD=64)),
    (ct._subtract, dict(BN=32, BD=64)),
    (ts._finish, dict(BN=32, BD=32)),
):
    fixed = {**shape, **extra}
    names = fn.arg_names
    signature = {n: "constexpr" if n in fixed else types.get(n, "*fp32") for n in names}
    source = ASTSource(fn, signature, {(names.index(n),): v for n, v in fixed.items()})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert kernel.asm["cubin"]
"""


def test_the_kernels_compile_for_hopper():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", _COMPILE], check=True, env=environment)
