"""Replacing ranges of an array: what the op computes, and every check."""

from __future__ import annotations

import torch

from crs_fast import _native

from ..host import check_vector
from . import native as kernel
from . import reference


def splice(
    values: torch.Tensor,
    begin: torch.Tensor,
    end: torch.Tensor,
    added: torch.Tensor,
    bounds: torch.Tensor,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """A copy of `values` with ranges of it replaced; an empty range inserts, nothing added removes.

        out = values[: begin[0]]
        for i in range(n):
            out += added[bounds[i] : bounds[i + 1]] + values[end[i] : begin[i + 1]]   # N after all

    What is kept is copied in runs, at the speed of the memory where the ranges are few.

    Args:
        values: [N] on the CPU, of any dtype.
        begin, end: int64 [n], ranges of positions that ascend and do not overlap.
        added: [m], of the dtype of `values`.
        bounds: int64 [n + 1], ascending from 0 to m.
        shift: int64 [n + 1] for int64 values: added to those kept before range i, the last to those
            after all ranges.

    Raises:
        ValueError: tensors of another dtype, shape or device, ranges that overlap or leave
            `values`, or bounds that leave `added`.
    """
    any_dtype = (values.dtype,) if isinstance(values, torch.Tensor) else ()
    int64 = (torch.int64,)
    check_vector("splice", "values", values, any_dtype if shift is None else int64)
    check_vector("splice", "added", added, any_dtype)
    check_vector("splice", "begin", begin, int64)
    count = begin.numel()
    check_vector("splice", "end", end, int64, count)
    check_vector("splice", "bounds", bounds, int64, count + 1)
    if shift is not None:
        check_vector("splice", "shift", shift, int64, count + 1)
    edges = torch.stack([begin, end], 1).flatten()
    if count and not (
        int(edges[0]) >= 0 and int(edges[-1]) <= values.numel() and bool((edges.diff() >= 0).all())
    ):
        raise ValueError(
            f"splice: begin and end must be ranges of the {values.numel()} values that ascend and "
            f"do not overlap (got {count} ranges that don't)"
        )
    if (int(bounds[0]), int(bounds[-1])) != (0, added.numel()) or bool((bounds.diff() < 0).any()):
        raise ValueError(
            f"splice: bounds must ascend from 0 to the {added.numel()} added values "
            f"(got {count + 1} bounds that don't)"
        )
    native = _native.load()
    if native is None:
        return reference.splice(values, begin, end, added, bounds, shift)
    return kernel.splice(native, values, begin, end, added, bounds, shift)
