"""The checks of `vocab_logsumexp`'s arguments, for it and for `torch.ops.crs_fast`."""

from __future__ import annotations

import math

import torch

from ..dtypes import NATIVE_FLOATS, name_of

_OP = "vocab_logsumexp"


def check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> None:
    _check_tensor("hidden", hidden, hidden, NATIVE_FLOATS, "[R, D]")
    _check_tensor("weight", weight, hidden, (hidden.dtype,), "[V, D]")
    if bias is not None:
        _check_tensor("bias", bias, hidden, (hidden.dtype,), "[V]")
    if weight.shape[1] != hidden.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"{_OP}: weight must be [V, D] with V at least 1 and D = {hidden.shape[1]}, at least 1 "
            f"(got {list(weight.shape)})"
        )
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise ValueError(f"{_OP}: bias must be [{weight.shape[0]}] (got {list(bias.shape)})")
    for name, value in (("softcap", softcap), ("temperature", temperature)):
        if name == "softcap" and value is None:
            continue
        if not isinstance(value, (float, int)) or not 0 < value < math.inf:
            raise ValueError(f"{_OP}: {name} must be finite and above 0 (got {value!r})")
    if not isinstance(scale, (float, int)) or not math.isfinite(scale):
        raise ValueError(f"{_OP}: scale must be a finite number (got {scale!r})")


def _check_tensor(
    name: str,
    tensor: torch.Tensor,
    hidden: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    axes: str,
) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{_OP}: {name} must be a torch tensor (got {type(tensor).__name__})")
    if tensor.layout != torch.strided or tensor.dtype not in dtypes:
        expected = ", ".join(map(name_of, dtypes))
        raise ValueError(
            f"{_OP}: {name} must be a dense tensor of {expected} "
            f"(got {tensor.layout}, {name_of(tensor.dtype)})"
        )
    if tensor.ndim != axes.count(",") + 1:
        raise ValueError(f"{_OP}: {name} must be {axes} (got {list(tensor.shape)})")
    if tensor.device != hidden.device:
        raise ValueError(
            f"{_OP}: {name} must be on the device of hidden, {hidden.device} (got {tensor.device})"
        )
