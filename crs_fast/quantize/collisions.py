"""One SID an item: collisions of a residual quantizer, resolved deterministically."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from crs_fast.ops.collisions import place_colliding
from crs_fast.ops.host import as_tensor


def resolve_collisions(x: Any, codes: Any, codebooks: Any, occupied: Any = None) -> torch.Tensor:
    """Give items that share a SID SIDs of their own; all other items keep theirs.

        for group in groups of items with one SID, by lowest item index:
            for item in group, by distance to its nearest last-level codeword:
                prefix = the longest prefix of the group's SID, last level left off, with room
                while prefix is no whole SID:      # residuals taken anew at every level
                    prefix += the nearest codeword whose subtree has a SID no item holds

    Where a last level is full this backs up one level, takes the next nearest codeword there and
    redoes the levels after it. Ties go to the lower item index and the lower code. Distances are
    squared Euclidean, in float64.

    With `occupied`, new items join a frozen catalogue: its SIDs are never given, and an item
    encoded to one of them moves like a colliding item. No item of the catalogue moves.

    Args:
        x: float [N, D], items in the codebooks' space (`quantizer.embed(...)`).
        codes: int [N, L], as encoded.
        codebooks: float [L, K, D].
        occupied: int [M, L], SIDs that items outside x hold, or None.

    Returns:
        sids int64 [N, L], all rows distinct and none occupied, on codes' device.

    Raises:
        ValueError: shapes that do not fit, codes outside [0, K), x or codebooks not finite, or
            more items than free SIDs, so that no assignment exists.

    Source: Zhang, Liu, Long 2026 (GCRS, arXiv 2605.21987), appendix A. Open there: residuals are
    recomputed after backing up, and items are ranked once, at the last level.
    """
    device = codes.device if isinstance(codes, torch.Tensor) else torch.device("cpu")
    points, given, books = _checked(x, codes, codebooks)
    held = _occupied(occupied, books, len(given))
    sids = place_colliding(points, books, given, _colliding(given, held), held)
    return torch.from_numpy(sids).to(device)


def add_disambiguation_level(codes: Any, occupied: Any = None) -> torch.Tensor:
    """Tell items of one SID apart by one more level, counting them from 0 (TIGER's way).

    The new level's codes carry no meaning, and it needs as many as the largest bucket has items;
    `resolve_collisions` needs no extra level.

    Args:
        codes: int [N, L], as encoded, not negative.
        occupied: int [M, L + 1], SIDs of a frozen catalogue; counting goes on after the highest
            code each of them has.

    Returns:
        sids int64 [N, L + 1], all rows distinct and none occupied, on codes' device.

    Raises:
        ValueError: codes or occupied are not int of these shapes, or negative.

    Source: Rajput et al. 2023 (TIGER, arXiv 2305.05065), section 3.1.
    """
    given = as_tensor(codes)
    held = given.new_empty(0, given.shape[-1] + 1) if occupied is None else as_tensor(occupied)
    for name, value, width in (("codes", given, None), ("occupied", held, given.shape[-1] + 1)):
        if value.is_floating_point() or value.ndim != 2 or width not in (None, value.shape[1]):
            raise ValueError(
                f"add_disambiguation_level: {name} must be int [n, {width or 'L'}] "
                f"(got {value.dtype}, shape {tuple(value.shape)})"
            )
        if value.numel() and int(value.min()) < 0:
            raise ValueError(f"add_disambiguation_level: {name} must not be negative")
    if not len(given):
        return given.new_empty(0, given.shape[1] + 1).long()
    held = held.to(given.device)
    bucket = _buckets(torch.cat([held[:, :-1], given]).cpu().numpy())
    first = np.zeros(bucket.max() + 1, dtype=np.int64)
    np.maximum.at(first, bucket[: len(held)], held[:, -1].cpu().numpy() + 1)
    mine = bucket[len(held) :]
    order = np.argsort(mine, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(mine[order])) + 1])
    sizes = np.diff(np.append(starts, len(order)))
    number = np.empty(len(mine), dtype=np.int64)
    number[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    extra = torch.from_numpy(first[mine] + number).to(given.device)
    return torch.cat([given.long(), extra[:, None]], 1)


def _buckets(codes: np.ndarray) -> np.ndarray:
    """A number for each row, the same exactly for equal rows; codes not negative, N >= 1."""
    sizes = [int(n) + 1 for n in codes.max(0)]
    if math.prod(sizes) < 1 << 62:  # one integer a row sorts much faster than rows do
        keys = np.zeros(len(codes), dtype=np.int64)
        for column, size in zip(codes.T, sizes, strict=True):
            keys = keys * size + column
        return np.unique(keys, return_inverse=True)[1]
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def _colliding(codes: np.ndarray, occupied: np.ndarray) -> list[np.ndarray]:
    """Item indices of every SID held twice or more, or occupied; groups by lowest index, each
    ascending."""
    if not len(codes):
        return []
    which = _buckets(np.concatenate([codes, occupied]))
    mine = which[: len(codes)]
    move = (np.bincount(which) > 1)[mine]
    order = np.argsort(mine, kind="stable")
    order = order[move[order]]
    groups = np.split(order, np.flatnonzero(np.diff(mine[order])) + 1) if len(order) else []
    return sorted(groups, key=lambda g: int(g[0]))


def _occupied(occupied: Any, books: np.ndarray, rows: int) -> np.ndarray:
    levels, num_codes, _ = books.shape
    if occupied is None:
        held = np.empty((0, levels), dtype=np.int64)
    else:
        value = as_tensor(occupied).detach().cpu()
        if value.is_floating_point() or value.ndim != 2 or value.shape[1] != levels:
            raise ValueError(
                f"resolve_collisions: occupied must be int [M, {levels}] "
                f"(got {value.dtype}, shape {tuple(value.shape)})"
            )
        held = np.unique(value.long().numpy(), axis=0)
    if len(held) and not 0 <= int(held.min()) <= int(held.max()) < num_codes:
        raise ValueError(
            f"resolve_collisions: occupied must lie in [0, {num_codes}) "
            f"(got [{int(held.min())}, {int(held.max())}])"
        )
    if rows + len(held) > num_codes**levels:
        raise ValueError(
            f"resolve_collisions: codes must hold at most K ** L - M = "
            f"{num_codes**levels - len(held)} items (got {rows})"
        )
    return held


def _checked(x: Any, codes: Any, codebooks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = as_tensor(x).detach().cpu().double().numpy()
    books = as_tensor(codebooks).detach().cpu().double().numpy()
    given = as_tensor(codes).detach().cpu()
    if given.is_floating_point() or given.ndim != 2:
        raise ValueError(
            f"resolve_collisions: codes must be int [N, L] "
            f"(got {given.dtype}, shape {tuple(given.shape)})"
        )
    rows, levels = given.shape
    if books.ndim != 3 or books.shape[0] != levels or 0 in books.shape:
        raise ValueError(
            f"resolve_collisions: codebooks must have shape [{levels}, K, D] (got {books.shape})"
        )
    num_codes, dim = books.shape[1:]
    if points.shape != (rows, dim):
        raise ValueError(
            f"resolve_collisions: x must have shape {(rows, dim)} (got {points.shape})"
        )
    for name, value in (("x", points), ("codebooks", books)):
        if not np.isfinite(value).all():
            raise ValueError(f"resolve_collisions: {name} must be finite (got NaN or infinity)")
    if rows and not 0 <= int(given.min()) <= int(given.max()) < num_codes:
        raise ValueError(
            f"resolve_collisions: codes must lie in [0, {num_codes}) "
            f"(got [{int(given.min())}, {int(given.max())}])"
        )
    return points, given.long().numpy(), books
