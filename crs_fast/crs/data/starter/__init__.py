"""Starter data: a small catalogue of real films and SIMULATED dialogues about them.

The catalogue's facts (title, year, genres, keywords, director, cast) were written by hand for this
package. The dialogues are made by a seeded simulator from hand-written templates: no person said
any of it, and every `dialogue_id` begins with "simulated-". Use them to try the system out, never
to report how well a method recommends.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources

from crs_fast.crs.data.dialogue import CrsDataset, Item
from crs_fast.crs.data.starter.simulator import World, build_world, simulate

__all__ = ["load_starter", "load_starter_items"]

_CORE = ("item_id", "title", "year")


def load_starter_items() -> tuple[Item, ...]:
    """The embedded catalogue: genres, keywords, director and cast stand in `Item.fields`."""
    path = resources.files(__package__) / "films.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(
        Item(
            row["item_id"],
            row["title"],
            row["year"],
            {key: value for key, value in row.items() if key not in _CORE},
        )
        for row in rows
    )


@lru_cache(maxsize=1)
def _world() -> World:
    return build_world(load_starter_items())


def load_starter(seed: int = 0, train: int = 3000, valid: int = 300, test: int = 400) -> CrsDataset:
    """Simulated dialogues over the embedded catalogue.

    Deterministic in `seed`, and dialogue n of a split is the same however many are asked for.
    Popularity and tastes are the same for every seed; "valid" and "test" use sentence templates
    that "train" never does.

    Args:
        seed: at least 0.
        train, valid, test: number of dialogues of each split, at least 0.

    Raises:
        ValueError: an argument is negative.
    """
    counts = {"train": train, "valid": valid, "test": test}
    for name, value in {"seed": seed, **counts}.items():
        if value < 0:
            raise ValueError(f"load_starter: {name} must be at least 0 (got {value})")
    world = _world()
    splits = {
        name: tuple(
            simulate(world, (seed, s, n), name != "train", f"simulated-{name}-{n:05d}")
            for n in range(count)
        )
        for s, (name, count) in enumerate(counts.items())
    }
    return CrsDataset("starter", world.items, splits)
