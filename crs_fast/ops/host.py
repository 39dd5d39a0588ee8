"""A caller's values as tensors, whatever torch's default device is."""

from __future__ import annotations

from typing import Any

import torch


def as_tensor(values: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor stays where it is; a list or an array becomes one on the CPU."""
    device = values.device if isinstance(values, torch.Tensor) else "cpu"
    return torch.as_tensor(values, dtype=dtype, device=device)
