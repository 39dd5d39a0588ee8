"""Giving colliding items SIDs of their own, in C++ where it is built."""

from __future__ import annotations

import numpy as np

from crs_fast import _native

from . import reference


def place_colliding(
    x: np.ndarray,
    books: np.ndarray,
    sids: np.ndarray,
    groups: list[np.ndarray],
    occupied: np.ndarray,
) -> np.ndarray:
    """Give every row of every group a free SID, groups in order.

        release the group's SID, unless it is occupied
        for row in group, by distance to its nearest last-level codeword, then by number:
            prefix = the longest prefix of the group's SID, last level left off, with room
            while prefix is no whole SID:
                prefix += the nearest codeword whose subtree has a SID nobody holds

    Args:
        x: float64 [N, D]; books: float64 [L, K, D].
        sids: int64 [N, L] in [0, K), as encoded.
        groups: int64 arrays, each all rows of one SID.
        occupied: int64 [M, L], distinct SIDs that rows outside x hold. N + M <= K ** L.

    Returns:
        sids int64 [N, L]: rows of groups given anew, the others as they were.
    """
    native = _native.load()
    if native is None or not groups:
        return reference.place_colliding(x, books, sids, groups, occupied)
    x, books, occupied = (np.ascontiguousarray(a) for a in (x, books, occupied))
    sids = sids.copy(order="C")
    members = np.concatenate(groups).astype(np.int64)
    ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
    items, dim = x.shape
    levels, codes, _ = books.shape
    found = native.resolve_collisions(
        x.ctypes.data, books.ctypes.data, items, levels, codes, dim, sids.ctypes.data,
        occupied.ctypes.data, len(occupied), members.ctypes.data, ends.ctypes.data, len(ends),
    )  # fmt: skip
    if not found:
        raise RuntimeError(
            "place_colliding: no SID is free (a defect: N + M <= K ** L was checked)"
        )
    return sids
