"""Two data sets as one catalogue, to train on one before the other."""

from __future__ import annotations

from dataclasses import replace

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item


def join(dataset: CrsDataset, other: CrsDataset) -> CrsDataset:
    """`dataset`'s items followed by those of `other` that it lacks, with the training dialogues
    of `other` as the split "first" and those of both as "train".

    Items are one where title and year agree; the rest of `other` get ids `<name>:<id>`.
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
