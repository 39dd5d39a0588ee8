"""Resolves collisions, items that a quantizer gave the same SID; the result is deterministic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from crs_fast.ops.collisions import place_colliding
from crs_fast.ops.host import as_integers, as_numbers


def resolve_collisions(x: Any, codes: Any, codebooks: Any, occupied: Any = None) -> torch.Tensor:
    """Give each of the items that share a SID a SID of its own; all other items keep theirs.

        for group in groups of items with one SID, by lowest item index:
            for item in group, by distance to its nearest last-level codeword:
                prefix = the longest prefix of the group's SID, without its last level, with room
                while prefix is shorter than a SID:      # residuals are recomputed at each level
                    prefix += the nearest codeword below which a SID is free

    Where no SID below a prefix is free, this goes back one level, takes the next nearest codeword
    there and continues from it. Ties go to the lower item index and the lower code. Distances are
    squared Euclidean, in float64.

    With `occupied`, new items join a frozen catalogue. Its SIDs are never given to a new item, and
    a new item encoded to one of them is treated as colliding. No item of the catalogue moves.

    Args:
        x: float [N, D], items in the codebooks' space (`quantizer.embed(...)`).
        codes: int [N, L], as encoded.
        codebooks: float [L, K, D].
        occupied: int [M, L], the SIDs of items that are not in x, or None.

    Returns:
        sids int64 [N, L], all distinct and none occupied, on the device of `codes`.

    Raises:
        ValueError: the shapes do not fit, a code is outside [0, K), x or codebooks are not
            finite, or there are more items than free SIDs.

    Source: Zhang, Liu, Long 2026 (GCRS, arXiv 2605.21987), appendix A. Two choices that it leaves
    open: residuals are recomputed after going back a level, and items are ranked once, by their
    distance at the last level.
    """
    device = codes.device if isinstance(codes, torch.Tensor) else torch.device("cpu")
    points, encoded, books = _checked(x, codes, codebooks)
    taken = _occupied(occupied, books, len(encoded))
    sids = place_colliding(points, books, encoded, _colliding(encoded, taken), taken)
    return torch.from_numpy(sids).to(device)


def add_disambiguation_level(codes: Any, occupied: Any = None) -> torch.Tensor:
    """Add a level that numbers the items of one SID from 0, as TIGER does.

    The codes of the new level carry no meaning, and it needs as many codes as the most items on
    one SID. `resolve_collisions` needs no extra level.

    Args:
        codes: int [N, L], as encoded, not negative.
        occupied: int [M, L + 1], SIDs of a frozen catalogue; the numbers of new items continue
            after the highest number that the catalogue has for the same codes.

    Returns:
        sids int64 [N, L + 1], all distinct and none occupied, on the device of `codes`.

    Raises:
        ValueError: codes or occupied are not int of these shapes, or negative.

    Source: Rajput et al. 2023 (TIGER, arXiv 2305.05065), section 3.1.
    """
    op = "add_disambiguation_level"
    given = as_integers(f"{op}: codes", codes)
    levels = given.shape[-1] if given.ndim else 0
    taken = given.new_empty(0, levels + 1)
    if occupied is not None:
        taken = as_integers(f"{op}: occupied", occupied)
    for name, value, width in (("codes", given, None), ("occupied", taken, levels + 1)):
        if value.ndim != 2 or width not in (None, value.shape[1]):
            raise ValueError(
                f"add_disambiguation_level: {name} must be int [n, {width or 'L'}] "
                f"(got {value.dtype}, shape {tuple(value.shape)})"
            )
        if value.numel() and int(value.min()) < 0:
            raise ValueError(
                f"add_disambiguation_level: {name} must not be negative (got {int(value.min())})"
            )
    if not len(given):
        return given.new_empty(0, given.shape[1] + 1).long()
    taken = taken.to(given.device)
    bucket = _buckets(torch.cat([taken[:, :-1], given]).cpu().numpy())
    first_free = np.zeros(bucket.max() + 1, dtype=np.int64)
    np.maximum.at(first_free, bucket[: len(taken)], taken[:, -1].cpu().numpy() + 1)
    item_bucket = bucket[len(taken) :]
    order = np.argsort(item_bucket, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(item_bucket[order])) + 1])
    sizes = np.diff(np.append(starts, len(order)))
    number = np.empty(len(item_bucket), dtype=np.int64)
    number[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    last_level = torch.from_numpy(first_free[item_bucket] + number).to(given.device)
    return torch.cat([given.long(), last_level[:, None]], 1)


def _buckets(codes: np.ndarray) -> np.ndarray:
    """Number the SIDs [N, L]: equal SIDs get equal numbers, different ones different numbers. Codes
    are not negative, N >= 1."""
    sizes = [int(n) + 1 for n in codes.max(0)]
    if math.prod(sizes) < 1 << 62:  # one integer per SID sorts much faster than a row of codes
        keys = np.zeros(len(codes), dtype=np.int64)
        for level_codes, size in zip(codes.T, sizes, strict=True):
            keys = keys * size + level_codes
        return np.unique(keys, return_inverse=True)[1]
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def _colliding(codes: np.ndarray, occupied: np.ndarray) -> list[np.ndarray]:
    """Groups of item indices, one per SID that several items have or that is occupied. Groups are
    sorted by their lowest index, and each is ascending."""
    if not len(codes):
        return []
    bucket = _buckets(np.concatenate([codes, occupied]))
    item_bucket = bucket[: len(codes)]
    collides = (np.bincount(bucket) > 1)[item_bucket]
    order = np.argsort(item_bucket, kind="stable")
    order = order[collides[order]]
    groups = np.split(order, np.flatnonzero(np.diff(item_bucket[order])) + 1) if len(order) else []
    return sorted(groups, key=lambda g: int(g[0]))


def _occupied(occupied: Any, books: np.ndarray, items: int) -> np.ndarray:
    levels, num_codes, _ = books.shape
    if occupied is None:
        taken = np.empty((0, levels), dtype=np.int64)
    else:
        value = as_integers("resolve_collisions: occupied", occupied).detach().cpu()
        if value.ndim != 2 or value.shape[1] != levels:
            raise ValueError(
                f"resolve_collisions: occupied must be int [M, {levels}] "
                f"(got {value.dtype}, shape {tuple(value.shape)})"
            )
        taken = np.unique(value.long().numpy(), axis=0)
    if len(taken) and not 0 <= int(taken.min()) <= int(taken.max()) < num_codes:
        raise ValueError(
            f"resolve_collisions: occupied must lie in [0, {num_codes}) "
            f"(got [{int(taken.min())}, {int(taken.max())}])"
        )
    if items + len(taken) > num_codes**levels:
        raise ValueError(
            f"resolve_collisions: codes must hold at most K ** L - M = "
            f"{num_codes**levels - len(taken)} items (got {items})"
        )
    return taken


def _checked(x: Any, codes: Any, codebooks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    op = "resolve_collisions"
    points = as_numbers(f"{op}: x", x).detach().cpu().double().numpy()
    books = as_numbers(f"{op}: codebooks", codebooks).detach().cpu().double().numpy()
    encoded = as_integers(f"{op}: codes", codes).detach().cpu()
    if encoded.ndim != 2:
        raise ValueError(
            f"resolve_collisions: codes must be int [N, L] "
            f"(got {encoded.dtype}, shape {tuple(encoded.shape)})"
        )
    items, levels = encoded.shape
    if books.ndim != 3 or books.shape[0] != levels or 0 in books.shape:
        raise ValueError(
            f"resolve_collisions: codebooks must have shape [{levels}, K, D] (got {books.shape})"
        )
    num_codes, dim = books.shape[1:]
    if points.shape != (items, dim):
        raise ValueError(
            f"resolve_collisions: x must have shape {(items, dim)} (got {points.shape})"
        )
    for name, value in (("x", points), ("codebooks", books)):
        if not np.isfinite(value).all():
            raise ValueError(f"resolve_collisions: {name} must be finite (got NaN or infinity)")
    if items and not 0 <= int(encoded.min()) <= int(encoded.max()) < num_codes:
        raise ValueError(
            f"resolve_collisions: codes must lie in [0, {num_codes}) "
            f"(got [{int(encoded.min())}, {int(encoded.max())}])"
        )
    return points, encoded.long().numpy(), books
