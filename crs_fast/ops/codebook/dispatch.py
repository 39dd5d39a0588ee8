"""Registration of the codebook ops with torch, and which kernel takes a call.

float16, bfloat16 and float32 go to C++ on the CPU and to Triton on CUDA; float64, and machines
without those, to the same arithmetic in PyTorch (`eager.py`).
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from crs_fast import _native

from ..designs import Choice
from ..dtypes import NATIVE_FLOATS
from ..library import register
from . import eager
from . import native as kernels
from .checks import check

# How CUDA sums what was given to each code: by PyTorch, which sorts the codes of every level first,
# or in whole numbers, by the pass that takes the residual.
SUMS = Choice({"sorted": False, "in units": True})


def check_finite(op: str, name: str, value: torch.Tensor) -> None:
    """Refuse NaN and infinity; both show in the extremes, which need no memory. Here and not among
    the other checks, since it reads values, which a traced call does not have."""
    # A CUDA graph under capture cannot be asked for a value.
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):
        _refuse(op, name)


def _refuse(op: str, name: str) -> None:
    raise ValueError(f"{op}: {name} must be finite (got NaN or infinity)")


def _native_cpu(op, x, codebooks, exact, want_residual, statistics):
    """Codes, residual, counts and sums from C++, or None where it does not serve."""
    native = None if x.is_cuda else _native.load()
    if native is None or not _for_kernels(x, codebooks):
        return None
    finite, results = kernels.lookup(native, x, codebooks, exact, want_residual, statistics)
    if not finite:
        _refuse(op, "x")
    return results


def _triton(op, x, codebooks, exact, want_residual):
    """Codes and residual from Triton, or None where it does not serve."""
    if not _triton_serves(x, codebooks):
        return None
    from . import triton as triton_kernel

    with torch.cuda.device(x.device):  # Triton launches on the current one
        codes, residual, bad = triton_kernel.lookup(x, codebooks, exact, want_residual)
        if not torch.cuda.is_current_stream_capturing() and int(bad):
            _refuse(op, "x")
    return codes, residual


def _triton_serves(x, codebooks):
    return (
        x.is_cuda and _for_kernels(x, codebooks) and importlib.util.find_spec("triton") is not None
    )


def _for_kernels(x, codebooks):
    return x.dtype in NATIVE_FLOATS and codebooks.dtype in NATIVE_FLOATS


def _lookup(op, x, codebooks, exact, want_residual):
    check(op, x, codebooks)
    check_finite(op, "codebooks", codebooks)
    results = _native_cpu(op, x, codebooks, exact, want_residual, statistics=False)
    if results is not None:
        return results[:2]
    results = _triton(op, x, codebooks, exact, want_residual)
    if results is not None:
        return results
    check_finite(op, "x", x)
    codes, residual = eager.lookup(x, codebooks, exact)
    return codes, residual if want_residual else residual.new_empty(0, residual.shape[1])


def _statistics(op, x, codebooks, exact):
    check(op, x, codebooks)
    check_finite(op, "codebooks", codebooks)
    results = _native_cpu(op, x, codebooks, exact, want_residual=True, statistics=True)
    if results is not None:
        return results
    if SUMS.now and _triton_serves(x, codebooks):
        from . import triton_statistics

        codes = _lookup(op, x, codebooks, exact, want_residual=False)[0]
        with torch.cuda.device(x.device):
            return codes, *triton_statistics.statistics(x, codebooks, codes)
    codes, residual = _lookup(op, x, codebooks, exact, want_residual=True)
    return codes, residual, *eager.statistics(x, codebooks, codes)


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


register(
    "residual_lookup(Tensor x, Tensor codebooks, bool exact, bool want_residual) "
    "-> (Tensor, Tensor)",
    functools.partial(_lookup, "residual_lookup"),
    _lookup_fake,
)
register(
    "residual_statistics(Tensor x, Tensor codebooks, bool exact) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    functools.partial(_statistics, "residual_statistics"),
    _statistics_fake,
)
