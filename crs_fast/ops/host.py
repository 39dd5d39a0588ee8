"""A caller's values as tensors, whatever torch's default device is."""

from __future__ import annotations

from typing import Any

import torch


def as_tensor(values: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor stays where it is; a list or an array becomes one on the CPU."""
    device = values.device if isinstance(values, torch.Tensor) else "cpu"
    return torch.as_tensor(values, dtype=dtype, device=device)


def as_integers(what: str, values: Any) -> torch.Tensor:
    """A caller's whole numbers as an integer tensor. `what` names them in an error's text.

    Raises:
        ValueError: they are none.
    """
    made = _tensor_of(what, "integers", values)
    if made.numel() == 0:
        return made.long()
    if made.dtype == torch.bool or made.is_floating_point() or made.is_complex():
        raise ValueError(f"{what} must be integers (got {made.dtype})")
    return made


def as_numbers(what: str, values: Any) -> torch.Tensor:
    """A caller's numbers as a tensor.

    Raises:
        ValueError: they are none.
    """
    made = _tensor_of(what, "numbers", values)
    if made.is_complex():
        raise ValueError(f"{what} must be real numbers (got {made.dtype})")
    return made


def _tensor_of(what: str, kind: str, values: Any) -> torch.Tensor:
    try:
        made = as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what} must be {kind} (got {error})") from None
    if made.layout != torch.strided or made.is_meta:
        where = "a meta tensor" if made.is_meta else f"a tensor of layout {made.layout}"
        raise ValueError(f"{what} must be {kind} in memory (got {where})")
    return made


def check_integer(what: str, value: Any, least: int, below: int = 1 << 31) -> None:
    """
    Raises:
        ValueError: `value` is no integer in [least, below).
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= value < below:
        limit = "" if below == 1 << 31 else f" and below {below}"
        raise ValueError(f"{what} must be an integer, at least {least}{limit} (got {value!r})")


def check_vector(
    op: str, name: str, tensor: Any, dtypes: tuple[torch.dtype, ...], size: int | None = None
) -> None:
    """
    Raises:
        ValueError: `tensor` is no dense tensor [size] on the CPU of one of the dtypes.
    """
    expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    axes = "n" if size is None else size
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        kind = type(tensor).__name__
        raise ValueError(f"{op}: {name} must be a dense tensor {expected} [{axes}] (got {kind})")
    wrong_shape = tensor.ndim != 1 or (size is not None and tensor.numel() != size)
    if tensor.dtype not in dtypes or wrong_shape or tensor.device.type != "cpu":
        raise ValueError(
            f"{op}: {name} must be {expected} [{axes}] on the CPU "
            f"(got {tensor.dtype} {list(tensor.shape)} on {tensor.device})"
        )
