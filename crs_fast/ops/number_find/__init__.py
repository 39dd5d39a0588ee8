"""Looking numbers up among many, once: what the op computes, and every check."""

from __future__ import annotations

import torch

from crs_fast import _native

from ..host import check_vector
from . import native as kernel
from . import reference


def number_find(numbers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The position of each wanted number, int64 [n]; -1 where it is not among the numbers.

        table = {wanted[i]: i for i in range(n)}
        for p in range(N): if numbers[p] in table: positions[table[numbers[p]]] = p

    One pass over the numbers: cheaper than sorting them, unless many look-ups follow.

    Args:
        numbers: distinct, int32 or int64 [N] on the CPU.
        wanted: int64 [n] on the CPU; may hold equal numbers. n < 2^31.

    Raises:
        ValueError: another dtype, shape or device.
    """
    check_vector("number_find", "numbers", numbers, (torch.int32, torch.int64))
    check_vector("number_find", "wanted", wanted, (torch.int64,))
    native = _native.load()
    if native is None:
        return reference.number_find(numbers, wanted)
    return kernel.number_find(native, numbers, wanted)
