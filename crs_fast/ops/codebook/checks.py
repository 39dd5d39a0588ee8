"""The checks of the codebook ops' arguments, for the public functions and for
`torch.ops.crs_fast`."""

from __future__ import annotations

import torch

from ..dtypes import NATIVE_FLOATS

PRECISIONS = ("exact", "fast")
_FLOATS = (*NATIVE_FLOATS, torch.float64)


def check(op: str, x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact") -> None:
    for name, value, rank in (("x", x, 2), ("codebooks", codebooks, 3)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{op}: {name} must be a torch tensor (got {type(value).__name__})")
        if value.dtype not in _FLOATS:
            raise ValueError(
                f"{op}: {name} must be float16, bfloat16, float32 or float64 (got {value.dtype})"
            )
        if value.layout != torch.strided:
            raise ValueError(f"{op}: {name} must be a dense tensor (got {value.layout})")
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
