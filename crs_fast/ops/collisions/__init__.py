"""Giving colliding items SIDs of their own: what the op computes, and every check."""

from __future__ import annotations

import numpy as np

from crs_fast import _native

from . import native as kernel
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
        groups: int64 arrays, not empty, each all rows of one SID.
        occupied: int64 [M, L], distinct SIDs that rows outside x hold. N + M <= K ** L.

    Returns:
        sids int64 [N, L]: rows of groups given anew, the others as they were.

    Raises:
        ValueError: arrays of another dtype or shape, codes outside [0, K), rows outside x, or more
            items than SIDs.
    """
    _check(x, books, sids, groups, occupied)
    native = _native.load()
    if native is None or not groups:
        return reference.place_colliding(x, books, sids, groups, occupied)
    return kernel.place_colliding(native, x, books, sids, groups, occupied)


def _check(x, books, sids, groups, occupied) -> None:
    for name, value in (("x", x), ("books", books), ("sids", sids), ("occupied", occupied)):
        if not isinstance(value, np.ndarray):
            raise ValueError(
                f"place_colliding: {name} must be a numpy array (got {type(value).__name__})"
            )
    if books.ndim != 3:
        raise ValueError(f"place_colliding: books must be [L, K, D] (got {list(books.shape)})")
    levels, codes, dim = books.shape
    if 0 in books.shape:
        raise ValueError(
            "place_colliding: books must hold at least one level, code and dimension "
            f"(got {list(books.shape)})"
        )
    for name, array, dtype, shape, axes in (
        ("books", books, np.float64, books.shape, "[L, K, D]"),
        ("x", x, np.float64, (*x.shape[:1], dim), "[N, D]"),
        ("sids", sids, np.int64, (*x.shape[:1], levels), "[N, L]"),
        ("occupied", occupied, np.int64, (*occupied.shape[:1], levels), "[M, L]"),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"place_colliding: {name} must be {np.dtype(dtype)} {axes} "
                f"(got {array.dtype} {list(array.shape)})"
            )
    for name, array in (("x", x), ("books", books)):
        if not np.isfinite(array).all():
            raise ValueError(f"place_colliding: {name} must be finite (got NaN or infinity)")
    for name, array in (("sids", sids), ("occupied", occupied)):
        if array.size and not 0 <= array.min() <= array.max() < codes:
            raise ValueError(
                f"place_colliding: {name} must lie in 0 .. {codes - 1} "
                f"(got {array.min()} .. {array.max()})"
            )
    for group in groups:
        if not isinstance(group, np.ndarray):
            raise ValueError(
                f"place_colliding: groups must be numpy arrays (got {type(group).__name__})"
            )
        if group.dtype != np.int64 or group.ndim != 1 or not len(group):
            raise ValueError(
                "place_colliding: groups must be int64 [n], not empty "
                f"(got {group.dtype} {list(group.shape)})"
            )
    rows = np.concatenate(groups) if groups else np.empty(0, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(x):
        raise ValueError(
            f"place_colliding: groups must lie in 0 .. {len(x) - 1} "
            f"(got {rows.min()} .. {rows.max()})"
        )
    if len(np.unique(rows)) != len(rows) or any((sids[g] != sids[g[0]]).any() for g in groups):
        raise ValueError(
            "place_colliding: groups must hold rows of one SID each, every row once (got others)"
        )
    if len(np.unique(occupied, axis=0)) != len(occupied):
        raise ValueError("place_colliding: occupied must be distinct SIDs (got repeated ones)")
    if len(x) + len(occupied) > codes**levels:
        raise ValueError(
            f"place_colliding: x and occupied must hold at most K ** L = {codes**levels} items "
            f"(got {len(x) + len(occupied)})"
        )
