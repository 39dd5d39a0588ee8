"""Plain numpy oracle of `place_colliding`, and the fallback where no native module was built."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def place_colliding(
    x: np.ndarray,
    books: np.ndarray,
    sids: np.ndarray,
    groups: list[np.ndarray],
    occupied: np.ndarray,
) -> np.ndarray:
    """See `ops.collisions.place_colliding`."""
    sids = sids.copy()
    taken = {tuple(sid) for sid in occupied.tolist()}
    moving = {item for group in groups for item in group.tolist()}
    waiting = [tuple(sids[group[0]].tolist()) for group in groups]
    settled = {tuple(s) for i, s in enumerate(sids.tolist()) if i not in moving}
    tree = _Occupancy(taken | settled | set(waiting), books.shape[1], books.shape[0])
    for group, shared in zip(groups, waiting, strict=True):
        if shared not in taken:
            tree.add(shared, -1)
        prefix = shared[:-1]
        rest = x[group] - sum(books[level, code] for level, code in enumerate(prefix))
        confidence = [float(np.square(books[-1] - r).sum(-1).min()) for r in rest]
        for _, item in sorted(zip(confidence, group.tolist(), strict=True)):
            sids[item] = _nearest_free(x[item], prefix, books, tree)
            tree.add(tuple(sids[item].tolist()), 1)
    return sids


class _Occupancy:
    """How many SIDs are taken below every prefix."""

    def __init__(self, taken: set[tuple[int, ...]], num_codes: int, levels: int) -> None:
        self.num_codes, self.levels = num_codes, levels
        self.counts: defaultdict[tuple[int, ...], int] = defaultdict(int)
        for sid in taken:
            self.add(sid, 1)

    def add(self, sid: tuple[int, ...], change: int) -> None:
        for length in range(1, len(sid) + 1):
            self.counts[sid[:length]] += change

    def full(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Which children of a prefix have no room, bool [K]."""
        room = self.num_codes ** (self.levels - len(prefix) - 1)
        counts = [self.counts.get((*prefix, c), 0) for c in range(self.num_codes)]
        return np.array([count >= room for count in counts])


def _nearest_free(
    point: np.ndarray, prefix: tuple[int, ...], books: np.ndarray, tree: _Occupancy
) -> tuple[int, ...]:
    """Back up while there is no room, then down by distance."""
    while (full := tree.full(prefix)).all():
        prefix = prefix[:-1]
    rest = point - sum(books[level, code] for level, code in enumerate(prefix))
    while True:
        distance = np.square(books[len(prefix)] - rest).sum(-1)  # [K]
        code = int(np.where(full, np.inf, distance).argmin())
        rest = rest - books[len(prefix), code]
        prefix = (*prefix, code)
        if len(prefix) == tree.levels:
            return prefix
        full = tree.full(prefix)
