"""The call of `place_colliding` into C++."""

from __future__ import annotations

from typing import Any

import numpy as np


def place_colliding(
    native: Any,
    x: np.ndarray,
    books: np.ndarray,
    sids: np.ndarray,
    groups: list[np.ndarray],
    occupied: np.ndarray,
) -> np.ndarray:
    """See `ops.collisions.place_colliding`; at least one group."""
    x, books, occupied = (np.ascontiguousarray(a) for a in (x, books, occupied))
    sids = sids.copy(order="C")
    members = np.concatenate(groups)
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
    levels, codes, dim = books.shape
    placed = native.resolve_collisions(
        x=x.ctypes.data,
        books=books.ctypes.data,
        items=len(x),
        levels=levels,
        codes=codes,
        dim=dim,
        sids=sids.ctypes.data,
        occupied=occupied.ctypes.data,
        num_occupied=len(occupied),
        members=members.ctypes.data,
        ends=ends.ctypes.data,
        groups=len(ends),
    )
    if not placed:
        raise RuntimeError(
            "place_colliding: no SID is free (a defect: N + M <= K ** L was checked)"
        )
    return sids
