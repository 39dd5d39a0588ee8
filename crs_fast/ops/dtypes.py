"""The floating-point types that the native kernels read."""

from __future__ import annotations

from typing import Any

import torch

NATIVE_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_NAMES = {dtype: name_of(dtype) for dtype in NATIVE_FLOATS}  # a look-up, since every step asks


def native_dtype(native: Any, dtype: torch.dtype) -> Any:
    """The member of `_C.DType` for one of NATIVE_FLOATS."""
    return getattr(native.DType, _NAMES[dtype])
