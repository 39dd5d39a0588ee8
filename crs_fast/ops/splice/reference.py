"""Plain PyTorch oracle of `splice`, and the fallback where no native module was built."""

from __future__ import annotations

import torch


def splice(
    values: torch.Tensor,
    begin: torch.Tensor,
    end: torch.Tensor,
    added: torch.Tensor,
    bounds: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """See `ops.splice.splice`."""
    firsts = [0, *end.tolist()]
    lasts = [*begin.tolist(), values.numel()]
    pieces = list(added.split(bounds.diff().tolist()))
    parts = []
    for i, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        kept = values[first:last]
        parts.append(kept if shift is None else kept + shift[i])
        parts += pieces[i : i + 1] if i < begin.numel() else []
    return torch.cat(parts)
