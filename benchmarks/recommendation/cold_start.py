"""Holds items out of training. They leave every training dialogue and the quantizer's fit, and get
their SIDs from the frozen quantizer, like an item that joins the catalogue after training."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.targets import recommendation_targets


def hold_out(
    dataset: CrsDataset, share: float, seed: int = 0, split: str = "test"
) -> tuple[CrsDataset, frozenset[str]]:
    """Hold out a share of the items that are targets in a split and also named in training.

    A training dialogue that names such an item ends before that turn, so that no context holds the
    item either.

    Args:
        share: in (0, 1); at least one item is held out.

    Returns:
        The data set with its "train" split cut, and the ids of the held-out items.

    Raises:
        ValueError: share is outside (0, 1), or there is no item to hold out.
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out: share must lie in (0, 1) (got {share})")
    targets = {t for turn in recommendation_targets(dataset.splits[split]) for t in turn.targets}
    named = {m.item_id for d in dataset.splits["train"] for turn in d.turns for m in turn.mentions}
    pool = sorted(targets & named)
    if not pool:
        raise ValueError(f"hold_out: a {split} target must be named in training (got none)")
    held = frozenset(random.Random(seed).sample(pool, max(1, round(share * len(pool)))))
    train = without(dataset.splits["train"], held)
    return replace(dataset, splits={**dataset.splits, "train": train}), held


def without(dialogues: Iterable[Dialogue], held: frozenset[str]) -> tuple[Dialogue, ...]:
    """The dialogues to train on: each ends before the first turn that names a held-out item, and
    dialogues without any turn left are dropped."""
    return tuple(cut for d in dialogues if (cut := _before(d, held)).turns)


def _before(dialogue: Dialogue, held: frozenset[str]) -> Dialogue:
    for index, turn in enumerate(dialogue.turns):
        if held & set(turn.item_ids()):
            return replace(dialogue, turns=dialogue.turns[:index])
    return dialogue
