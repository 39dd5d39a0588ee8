"""Giving items that share a SID one of their own."""

from __future__ import annotations

import numpy as np
import torch

from crs_fast.ops import residual_codes
from crs_fast.ops.collisions import place_colliding, reference
from crs_fast.quantize import resolve_collisions

from .case import Case, Methods, check_equal


def collisions(size: str, device: str) -> tuple[str, Methods]:
    """A catalogue that fills a fifth of its SIDs, so that many items collide."""
    items, codes = (50_000, 64) if size == "full" else (300, 8)
    levels, dim = 3, 32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(items, dim, generator=generator)
    # Finer at every level, as residual codebooks are.
    books = torch.randn(levels, codes, dim, generator=generator)
    books *= 0.5 ** torch.arange(levels)[:, None, None]
    encoded = residual_codes(x, books)
    points, words, sids = x.double().numpy(), books.double().numpy(), encoded.numpy()
    groups = _sharing(sids)
    occupied = np.empty((0, levels), dtype=np.int64)
    arguments = (points, words, sids, groups, occupied)
    moved = sum(map(len, groups))
    methods: Methods = {
        "plain numpy (reference)": lambda: reference.place_colliding(*arguments),
        "place_colliding": lambda: place_colliding(*arguments),
        "resolve_collisions (checks and grouping too)": lambda: resolve_collisions(
            x, encoded, books
        ),
    }
    expected = torch.from_numpy(reference.place_colliding(*arguments))
    if len(expected.unique(dim=0)) != items:
        raise AssertionError("collisions: two items share a SID, nothing was timed")
    check_equal("collisions", expected, torch.from_numpy(place_colliding(*arguments)))
    check_equal("collisions", expected, resolve_collisions(x, encoded, books))
    return f"{items} items, {levels}x{codes}, D {dim}, {moved} items share a SID", methods


def _sharing(sids: np.ndarray) -> list[np.ndarray]:
    """The items of every SID that two or more have, groups by their lowest item."""
    by_sid: dict[tuple[int, ...], list[int]] = {}
    for item, sid in enumerate(sids.tolist()):
        by_sid.setdefault(tuple(sid), []).append(item)
    return [np.array(group) for group in by_sid.values() if len(group) > 1]


CASES = [Case("collisions", collisions, ("place_colliding", "resolve_collisions"))]
