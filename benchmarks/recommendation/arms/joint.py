"""Joins the catalogues of two data sets, so that a method can train on one before the other."""

from __future__ import annotations

from dataclasses import replace

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item


def join(dataset: CrsDataset, other: CrsDataset) -> CrsDataset:
    """The items of `dataset`, followed by those of `other` that it lacks. The training dialogues of
    `other` become the split "first", and those of both become "train".

    Two items are the same if title and year agree. The other items of `other` get the ids
    `<name>:<id>`.
    """
    known = {(item.title.lower(), item.year): item.item_id for item in reversed(dataset.items)}
    ids = {
        item.item_id: known.get((item.title.lower(), item.year), f"{other.name}:{item.item_id}")
        for item in other.items
    }
    added: dict[str, Item] = {}
    for item in other.items:
        if ids[item.item_id] not in known.values():
            added.setdefault(ids[item.item_id], replace(item, item_id=ids[item.item_id]))
    first = tuple(_renamed(dialogue, ids) for dialogue in other.splits["train"])
    splits = {"first": first, "train": first + dataset.splits["train"]}
    name = f"{dataset.name}+{other.name}"
    return CrsDataset(name, (*dataset.items, *added.values()), splits)


def _renamed(dialogue: Dialogue, ids: dict[str, str]) -> Dialogue:
    turns = tuple(
        replace(turn, mentions=tuple(replace(m, item_id=ids[m.item_id]) for m in turn.mentions))
        for turn in dialogue.turns
    )
    liked = {ids[item]: label for item, label in dialogue.liked.items()}
    return replace(dialogue, turns=turns, liked=liked)
