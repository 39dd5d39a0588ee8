"""The calls of `text_table` and `text_find` into C++."""

from __future__ import annotations

from typing import Any

import torch


def num_slots(count: int) -> int:
    """A power of two; at most two thirds of the slots are taken."""
    return 1 << (count + count // 2).bit_length()


def text_table(native: Any, text: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """See `ops.text_table.text_table`."""
    text, offsets = text.contiguous(), offsets.contiguous()
    count = offsets.numel() - 1
    slots = torch.zeros(num_slots(count), dtype=torch.int64, device="cpu")
    repeated = native.text_table(
        text=text.data_ptr(),
        offsets=offsets.data_ptr(),
        count=count,
        slots=slots.data_ptr(),
        num_slots=slots.numel(),
    )
    return slots, repeated


def text_find(
    native: Any,
    text: torch.Tensor,
    offsets: torch.Tensor,
    table: torch.Tensor,
    wanted: torch.Tensor,
    wanted_offsets: torch.Tensor,
) -> torch.Tensor:
    """See `ops.text_table.text_find`."""
    text, offsets, table = text.contiguous(), offsets.contiguous(), table.contiguous()
    wanted, wanted_offsets = wanted.contiguous(), wanted_offsets.contiguous()
    positions = torch.empty(wanted_offsets.numel() - 1, dtype=torch.int64, device="cpu")
    native.text_find(
        text=text.data_ptr(),
        offsets=offsets.data_ptr(),
        count=offsets.numel() - 1,
        slots=table.data_ptr(),
        num_slots=table.numel(),
        wanted=wanted.data_ptr(),
        wanted_offsets=wanted_offsets.data_ptr(),
        num_wanted=positions.numel(),
        positions=positions.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return positions
