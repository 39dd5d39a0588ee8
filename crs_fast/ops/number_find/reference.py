"""Plain Python oracle of `number_find`, and the fallback where no native module was built."""

from __future__ import annotations

import torch


def number_find(numbers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """See `ops.number_find.number_find`."""
    places = {number: place for place, number in enumerate(numbers.tolist())}
    positions = [places.get(number, -1) for number in wanted.tolist()]
    return torch.tensor(positions, dtype=torch.int64, device="cpu")
