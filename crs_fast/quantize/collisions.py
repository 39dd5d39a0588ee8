"""One SID an item: collisions of a residual quantizer, resolved deterministically."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from crs_fast.ops.codebook import residual_lookup


def resolve_collisions(x: Any, codes: Any, codebooks: Any) -> torch.Tensor:
    """Give items that share a SID SIDs of their own; all other items keep theirs.

        for group in groups of items with one SID, by lowest item index:
            for item in group, by distance to its nearest last-level codeword:
                prefix = the longest prefix of the group's SID, last level left off, with room
                while prefix is no whole SID:      # residuals taken anew at every level
                    prefix += the nearest codeword whose subtree has a SID no item holds

    Where a last level is full this backs up one level, takes the next nearest codeword there and
    redoes the levels after it. Ties go to the lower item index and the lower code. Distances are
    squared Euclidean, in float64.

    Args:
        x: float [N, D], items in the codebooks' space (`quantizer.embed(...)`).
        codes: int [N, L], as encoded.
        codebooks: float [L, K, D].

    Returns:
        sids int64 [N, L], all rows distinct, on codes' device.

    Raises:
        ValueError: shapes that do not fit, codes outside [0, K), x or codebooks not finite, or
            N > K ** L, so that no assignment exists.

    Source: Zhang, Liu, Long 2026 (GCRS, arXiv 2605.21987), appendix A. Open there: residuals are
    recomputed after backing up, and items are ranked once, at the last level.
    """
    device = codes.device if isinstance(codes, torch.Tensor) else torch.device("cpu")
    points, given, books = _checked(x, codes, codebooks)
    sids, groups = given.copy(), _colliding(given)
    if groups:
        members = np.concatenate(groups)
        confidence = dict(
            zip(members.tolist(), _last_level(points[members], given[members], books), strict=True)
        )
        tree = _Occupancy(np.unique(given, axis=0), books.shape[1])
        for group in groups:
            shared = given[group[0]].tolist()
            tree.add(shared, -1)
            for item in sorted(group.tolist(), key=lambda i: (confidence[i], i)):
                sid = _nearest_free(points[item], shared, books, tree)
                tree.add(sid, 1)
                sids[item] = sid
    return torch.from_numpy(sids).to(device)


class _Occupancy:
    """How many SIDs are held below every prefix. A prefix is its number in base K: exact, since
    Python integers do not overflow."""

    def __init__(self, held: np.ndarray, num_codes: int) -> None:
        self.num_codes, self.levels = num_codes, held.shape[1]
        self.counts: list[defaultdict[int, int]] = []
        wide = num_codes**self.levels > np.iinfo(np.int64).max
        keys = np.zeros(len(held), dtype=object if wide else np.int64)
        for level in range(self.levels):
            keys = keys * num_codes + held[:, level]
            names, counts = np.unique(keys, return_counts=True)
            pairs = zip(names.tolist(), counts.tolist(), strict=True)
            self.counts.append(defaultdict(int, pairs))

    def add(self, sid: list[int], change: int) -> None:
        key = 0
        for level, code in enumerate(sid):
            key = key * self.num_codes + code
            self.counts[level][key] += change

    def full(self, prefix: list[int]) -> np.ndarray:
        """Which children of a prefix have no room, bool [K]."""
        depth, key = len(prefix), 0
        for code in prefix:
            key = key * self.num_codes + code
        room = self.num_codes ** (self.levels - depth - 1)
        counts, first = self.counts[depth], key * self.num_codes
        return np.array([counts.get(first + c, 0) >= room for c in range(self.num_codes)])


def _nearest_free(
    point: np.ndarray, shared: list[int], books: np.ndarray, tree: _Occupancy
) -> list[int]:
    """The SID of one item of a group: back up while there is no room, then down by distance."""
    prefix = shared[:-1]
    while (full := tree.full(prefix)).all():
        prefix = prefix[:-1]
    rest = point - sum(books[level, code] for level, code in enumerate(prefix))
    while True:
        distance = np.square(books[len(prefix)] - rest).sum(-1)  # [K]
        code = int(np.where(full, np.inf, distance).argmin())
        rest = rest - books[len(prefix), code]
        prefix = [*prefix, code]
        if len(prefix) == tree.levels:
            return prefix
        full = tree.full(prefix)


def _colliding(codes: np.ndarray) -> list[np.ndarray]:
    """Item indices of every SID held twice or more, groups by lowest index, each ascending."""
    if not len(codes):
        return []
    _, which, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.cumsum(counts)[:-1])
    return sorted((g for g in groups if len(g) > 1), key=lambda g: int(g[0]))


def _last_level(points: np.ndarray, codes: np.ndarray, books: np.ndarray) -> list[float]:
    """Squared distance of every item's last residual to its nearest codeword, [n]."""
    rest = points.copy()
    for level in range(len(books) - 1):
        rest -= books[level, codes[:, level]]
    _, left = residual_lookup(torch.from_numpy(rest), torch.from_numpy(books[-1:]))
    return left.square().sum(-1).tolist()


def _checked(x: Any, codes: Any, codebooks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = torch.as_tensor(x).detach().cpu().double().numpy()
    books = torch.as_tensor(codebooks).detach().cpu().double().numpy()
    given = torch.as_tensor(codes).detach().cpu()
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
    if rows > num_codes**levels:
        raise ValueError(
            f"resolve_collisions: codes must hold at most K ** L = {num_codes**levels} items "
            f"(got {rows})"
        )
    return points, given.long().numpy(), books
