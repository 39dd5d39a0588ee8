"""Residual codebook lookup: checks, registration with torch, and the way into the kernels.

float16, bfloat16 and float32 go to C++ on the CPU and to Triton on CUDA; float64, and machines
without those, to the same arithmetic in PyTorch (`blocked.py`).
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from crs_fast import _native

from . import blocked

PRECISIONS = ("exact", "fast")
# The numbers of csrc/simd.h's DType.
NATIVE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FLOATS = (*NATIVE, torch.float64)

LIBRARY = torch.library.Library("crs_fast", "FRAGMENT")
LIBRARY.define(
    "residual_lookup(Tensor x, Tensor codebooks, bool exact, bool want_residual) "
    "-> (Tensor, Tensor)"
)
LIBRARY.define(
    "residual_statistics(Tensor x, Tensor codebooks, bool exact) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def residual_lookup(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize vectors against a stack of codebooks, each level coding what the last left over.

        for l in range(L):
            codes[:, l] = argmin_k |x - codebooks[l, k]|^2        # ties to the lower code
            x = x - codebooks[l, codes[:, l]]

    "exact": the codes that float64 arithmetic chooses. Scores are taken in lower precision, and
    only codewords whose score lies within its error bound of the best are measured again in
    float64. "fast" leaves that out: scores in float32 (TF32 on CUDA) decide. All levels of a block
    of rows run while it is in cache; N x K is never held.

    Args:
        x: float [N, D]; float16, bfloat16, float32 or float64, any strides; N may be 0.
        codebooks: float [L, K, D], on x's device; K may exceed N.
        precision: "exact" or "fast".

    Returns:
        codes: int64 [N, L].
        residual: [N, D], what remains after the last level; float64 where an input is float64,
            float32 otherwise.

    Raises:
        ValueError: wrong type, dtype, shape, device or precision, or a value that is NaN or
            infinite.

    Source: residual quantization as in Lee et al. 2022 (arXiv 2203.01941), eq. 1.
    """
    check_lookup("residual_lookup", x, codebooks, precision)
    return torch.ops.crs_fast.residual_lookup(
        x.detach(), codebooks.detach(), precision == "exact", True
    )


def residual_codes(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> torch.Tensor:
    """The codes of `residual_lookup` alone, int64 [N, L]: no memory beyond them."""
    check_lookup("residual_codes", x, codebooks, precision)
    return torch.ops.crs_fast.residual_lookup(
        x.detach(), codebooks.detach(), precision == "exact", False
    )[0]


def residual_statistics(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`residual_lookup` and what k-means and moving averages need, in one pass.

        counts[l, k] = rows with codes[:, l] == k
        sums[l, k]   = sum of those rows' inputs to level l

    The sums are taken in a fixed order: the same bits with any number of threads.

    Args:
        x, codebooks, precision: as for `residual_lookup`.

    Returns:
        codes int64 [N, L], residual [N, D], counts int64 [L, K], sums float64 [L, K, D].

    Raises:
        ValueError: as `residual_lookup`.
    """
    check_lookup("residual_statistics", x, codebooks, precision)
    return torch.ops.crs_fast.residual_statistics(
        x.detach(), codebooks.detach(), precision == "exact"
    )


def check_lookup(op: str, x: torch.Tensor, codebooks: torch.Tensor, precision: str) -> None:
    for name, value, rank in (("x", x, 2), ("codebooks", codebooks, 3)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{op}: {name} must be a torch tensor (got {type(value).__name__})")
        if value.dtype not in _FLOATS:
            raise ValueError(
                f"{op}: {name} must be float16, bfloat16, float32 or float64 (got {value.dtype})"
            )
        if value.ndim != rank:
            shape = "[N, D]" if rank == 2 else "[L, K, D]"
            raise ValueError(f"{op}: {name} must have shape {shape} (got {tuple(value.shape)})")
    if 0 in codebooks.shape:
        raise ValueError(
            f"{op}: codebooks must hold at least one level, code and dimension "
            f"(got {tuple(codebooks.shape)})"
        )
    if x.shape[1] != codebooks.shape[2]:
        raise ValueError(
            f"{op}: x must have the codebooks' {codebooks.shape[2]} dimensions (got {x.shape[1]})"
        )
    if x.device != codebooks.device:
        raise ValueError(
            f"{op}: codebooks must be on x's device {x.device} (got {codebooks.device})"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {PRECISIONS} (got {precision!r})")


def check_finite(op: str, name: str, value: torch.Tensor) -> None:
    """Refuse NaN and infinity; both show in the extremes, which need no memory."""
    # A CUDA graph under capture cannot be asked for a value.
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):
        _refuse(op, name)


def _refuse(op: str, name: str) -> None:
    raise ValueError(f"{op}: {name} must be finite (got NaN or infinity)")


def _native_cpu(native, op, x, books, exact, want_residual, statistics):
    """The C++ kernel: codes, residual, counts, sums, the last three empty unless wanted."""
    rows = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    books = books.float().contiguous()
    (num_rows, dim), (levels, num_codes, _) = x.shape, books.shape
    codes = torch.empty(num_rows, levels, dtype=torch.int64)
    residual = torch.empty(num_rows if want_residual else 0, dim)
    shape = (levels, num_codes) if statistics else (0, 0)
    counts = torch.empty(shape, dtype=torch.int64)
    sums = torch.empty(*shape, dim, dtype=torch.float64)
    finite, _ = native.residual_lookup(
        rows.data_ptr(), NATIVE[rows.dtype], num_rows, dim, rows.stride(0), books.data_ptr(),
        levels, num_codes, exact, torch.get_num_threads(), codes.data_ptr(),
        residual.data_ptr() if want_residual else 0,
        counts.data_ptr() if statistics else 0, sums.data_ptr() if statistics else 0,
    )  # fmt: skip
    if not finite:
        _refuse(op, "x")
    return codes, residual, counts, sums


def _lookup(op, x, codebooks, exact, want_residual):
    """Codes and residual by whatever serves this device and these dtypes."""
    check_finite(op, "codebooks", codebooks)
    if x.dtype in NATIVE and codebooks.dtype in NATIVE:
        if not x.is_cuda and (native := _native.load()) is not None:
            return _native_cpu(native, op, x, codebooks, exact, want_residual, False)[:2]
        if x.is_cuda and importlib.util.find_spec("triton") is not None:
            from . import triton as triton_kernel

            with torch.cuda.device(x.device):
                codes, residual, bad = triton_kernel.lookup(x, codebooks, exact, want_residual)
                if not torch.cuda.is_current_stream_capturing() and int(bad):
                    _refuse(op, "x")
            return codes, residual
    check_finite(op, "x", x)
    codes, residual = blocked.lookup(x, codebooks, exact)
    return codes, residual if want_residual else residual.new_empty(0, residual.shape[1])


def _statistics(x, codebooks, exact):
    op, native = "residual_statistics", None if x.is_cuda else _native.load()
    if native is not None and x.dtype in NATIVE and codebooks.dtype in NATIVE:
        check_finite(op, "codebooks", codebooks)
        return _native_cpu(native, op, x, codebooks, exact, True, True)
    codes, residual = _lookup(op, x, codebooks, exact, True)
    return codes, residual, *blocked.statistics(x, codebooks, codes)


def _out_dtype(x, codebooks):
    return torch.promote_types(torch.promote_types(x.dtype, codebooks.dtype), torch.float32)


def _lookup_fake(x, codebooks, exact, want_residual):
    codes = x.new_empty(x.shape[0], codebooks.shape[0], dtype=torch.int64)
    rows = x.shape[0] if want_residual else 0
    return codes, x.new_empty(rows, x.shape[1], dtype=_out_dtype(x, codebooks))


def _statistics_fake(x, codebooks, exact):
    return (
        *_lookup_fake(x, codebooks, exact, True),
        x.new_empty(codebooks.shape[:2], dtype=torch.int64),
        x.new_empty(codebooks.shape, dtype=torch.float64),
    )


for _name, _run, _fake in (
    ("residual_lookup", functools.partial(_lookup, "residual_lookup"), _lookup_fake),
    ("residual_statistics", _statistics, _statistics_fake),
):
    LIBRARY.impl(_name, _run, "CPU")
    LIBRARY.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"crs_fast::{_name}", _fake, lib=LIBRARY)
