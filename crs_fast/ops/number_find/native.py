"""The call of `number_find` into C++."""

from __future__ import annotations

from typing import Any

import torch


def number_find(native: Any, numbers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """See `ops.number_find.number_find`."""
    numbers, wanted = numbers.contiguous(), wanted.contiguous()
    positions = torch.empty(wanted.numel(), dtype=torch.int64, device="cpu")
    native.number_find(
        numbers=numbers.data_ptr(),
        size=numbers.numel(),
        number_bytes=numbers.element_size(),
        wanted=wanted.data_ptr(),
        num_wanted=wanted.numel(),
        positions=positions.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return positions
