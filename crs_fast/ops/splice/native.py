"""The call of `splice` into C++."""

from __future__ import annotations

from typing import Any

import torch


def splice(
    native: Any,
    values: torch.Tensor,
    begin: torch.Tensor,
    end: torch.Tensor,
    added: torch.Tensor,
    bounds: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """See `ops.splice.splice`."""
    values, added = values.contiguous(), added.contiguous()
    begin, end, bounds = begin.contiguous(), end.contiguous(), bounds.contiguous()
    shift = None if shift is None else shift.contiguous()
    out = values.new_empty(values.numel() - int((end - begin).sum()) + added.numel())
    native.splice(
        values=values.data_ptr(),
        begin=begin.data_ptr(),
        end=end.data_ptr(),
        added=added.data_ptr(),
        bounds=bounds.data_ptr(),
        shift=0 if shift is None else shift.data_ptr(),
        out=out.data_ptr(),
        size=values.numel(),
        count=begin.numel(),
        item_bytes=values.element_size(),
        threads=torch.get_num_threads(),
    )
    return out
