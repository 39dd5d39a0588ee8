"""Plain Python oracle of `text_table` and `text_find`, and the fallback where no native module was
built: the table is the order of the texts."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import torch


def _texts(text: torch.Tensor, offsets: torch.Tensor) -> list[bytes]:
    whole = text.numpy().tobytes()
    return [whole[a:b] for a, b in pairwise(offsets.tolist())]


def text_table(text: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """See `ops.text_table.text_table`."""
    texts = _texts(text, offsets)
    order = sorted(range(len(texts)), key=texts.__getitem__)  # stable: of equal ones the first
    later = [b for a, b in pairwise(order) if texts[a] == texts[b]]
    return torch.tensor(order, dtype=torch.int64, device="cpu"), min(later, default=-1)


def text_find(
    text: torch.Tensor,
    offsets: torch.Tensor,
    table: torch.Tensor,
    wanted: torch.Tensor,
    wanted_offsets: torch.Tensor,
) -> torch.Tensor:
    """See `ops.text_table.text_find`."""
    texts, order = _texts(text, offsets), table.tolist()
    positions = []
    for one in _texts(wanted, wanted_offsets):
        place = bisect_left(order, one, key=texts.__getitem__)
        known = place < len(order) and texts[order[place]] == one
        positions.append(order[place] if known else -1)
    return torch.tensor(positions, dtype=torch.int64, device="cpu")
