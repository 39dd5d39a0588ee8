"""Items held out on purpose: they leave every training dialogue and the quantizer's fit, and get
SIDs from the frozen quantizer, as an item would that joins the catalogue after training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from crs_fast.crs.dialogue import CrsDataset, Dialogue
from crs_fast.crs.targets import recommendation_targets


def hold_out(dataset: CrsDataset, share: float, seed: int = 0) -> tuple[CrsDataset, frozenset[str]]:
    """Hold out a share of the items that are targets in the test split and named in training.

    A training dialogue that names one ends before that turn, so that no context holds it either.

    Args:
        share: in (0, 1); at least one item is held out.

    Returns:
        The data set with its "train" split cut, and the ids of the items held out.

    Raises:
        ValueError: share outside (0, 1), or no item to hold out.
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out: share must lie in (0, 1) (got {share})")
    targets = {t for turn in recommendation_targets(dataset.splits["test"]) for t in turn.targets}
    named = {m.item_id for d in dataset.splits["train"] for turn in d.turns for m in turn.mentions}
    pool = sorted(targets & named)
    if not pool:
        raise ValueError("hold_out: a test target must be named in training (got none)")
    held = frozenset(random.Random(seed).sample(pool, max(1, round(share * len(pool)))))
    train = without(dataset.splits["train"], held)
    return replace(dataset, splits={**dataset.splits, "train": train}), held


def without(dialogues: Iterable[Dialogue], held: frozenset[str]) -> tuple[Dialogue, ...]:
    """Dialogues to train on: each ends before the first turn that names an item held out, and those
    of which nothing is left are gone."""
    return tuple(cut for d in dialogues if (cut := _before(d, held)).turns)


def _before(dialogue: Dialogue, held: frozenset[str]) -> Dialogue:
    for index, turn in enumerate(dialogue.turns):
        if held & set(turn.item_ids()):
            return replace(dialogue, turns=dialogue.turns[:index])
    return dialogue


def place_items(
    x: torch.Tensor, codes: torch.Tensor, codebooks: torch.Tensor, sids: torch.Tensor
) -> torch.Tensor:
    """SIDs for new items beside frozen ones.

        for item in order: its own codes where free, else the nearest free last-level code,
                           else back up one level and take the next nearest prefix there

    Args:
        x: float [n, D], new items in the codebooks' space (`quantizer.embed(...)`).
        codes: int [n, L], as encoded.
        codebooks: float [L, K, D].
        sids: int [N, L], held already; none of them changes.

    Returns:
        int64 [n, L], distinct and none among `sids`.

    Raises:
        ValueError: every SID is taken.
    """
    points, books = x.double().numpy(), codebooks.detach().double().numpy()
    taken = {tuple(row) for row in sids.tolist()}
    placed = []
    for point, code in zip(points, codes.tolist(), strict=True):
        sid = _nearest_free(point, code, books, taken)
        taken.add(sid)
        placed.append(sid)
    return torch.tensor(placed, dtype=torch.int64).reshape(len(points), codebooks.shape[0])


def _nearest_free(
    point: np.ndarray, code: Sequence[int], books: np.ndarray, taken: set[tuple[int, ...]]
) -> tuple[int, ...]:
    last = len(books) - 1
    for depth in reversed(range(len(books))):
        for child in _by_distance(point, code[:depth], books):
            prefix = [*code[:depth], child]
            while len(prefix) < last:
                prefix.append(_by_distance(point, prefix, books)[0])
            ends = _by_distance(point, prefix, books) if len(prefix) == last else [None]
            for end in ends:
                sid = tuple(prefix) if end is None else (*prefix, end)
                if sid not in taken:
                    return sid
    raise ValueError("place_items: sids must leave one free (got all taken)")


def _by_distance(point: np.ndarray, prefix: Sequence[int], books: np.ndarray) -> list[int]:
    rest = point - sum(books[level, code] for level, code in enumerate(prefix))
    distance = np.square(books[len(prefix)] - rest).sum(-1)  # [K]
    return [int(c) for c in distance.argsort(kind="stable")]
