"""Conversational recommenders: data sets, training, evaluation, and what answers messages.

Names are loaded on first use, so that `import crs_fast.crs` needs no transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; `_HOMES` says the same to Python
    from .backbones import load_backbone
    from .checkpoint import load_bundle, save_bundle
    from .control_tokens import ControlTokens
    from .data import (
        ReadReport,
        items_from,
        load_dataset,
        read_dialogues,
        read_items,
        write_dialogues,
        write_items,
    )
    from .data.dialogue import CrsDataset, Dialogue, Item, Mention, Turn
    from .evaluation.evaluate import Evaluation, evaluate
    from .exposure import Exposure, ItemGroups
    from .item_encoder import ItemEncoder
    from .joined_beams import JoinedBeams
    from .model_directory import make_model_directory
    from .recommender import Ranking, Recommender, Response
    from .text_neighbours import TextNeighbours
    from .training.config import TrainConfig
    from .training.pipeline import SidConfig, make_catalogue, train_recommender
    from .turn import TurnCache

_HOMES = {
    "backbones": ("load_backbone",),
    "checkpoint": ("load_bundle", "save_bundle"),
    "control_tokens": ("ControlTokens",),
    "data": (
        "ReadReport",
        "items_from",
        "load_dataset",
        "read_dialogues",
        "read_items",
        "write_dialogues",
        "write_items",
    ),
    "data.dialogue": ("CrsDataset", "Dialogue", "Item", "Mention", "Turn"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "exposure": ("Exposure", "ItemGroups"),
    "item_encoder": ("ItemEncoder",),
    "joined_beams": ("JoinedBeams",),
    "model_directory": ("make_model_directory",),
    "recommender": ("Ranking", "Recommender", "Response"),
    "text_neighbours": ("TextNeighbours",),
    "training.config": ("TrainConfig",),
    "training.pipeline": ("SidConfig", "make_catalogue", "train_recommender"),
    "turn": ("TurnCache",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ControlTokens",
    "CrsDataset",
    "Dialogue",
    "Evaluation",
    "Exposure",
    "Item",
    "ItemEncoder",
    "ItemGroups",
    "JoinedBeams",
    "Mention",
    "Ranking",
    "ReadReport",
    "Recommender",
    "Response",
    "SidConfig",
    "TextNeighbours",
    "TrainConfig",
    "Turn",
    "TurnCache",
    "evaluate",
    "items_from",
    "load_backbone",
    "load_bundle",
    "load_dataset",
    "make_catalogue",
    "make_model_directory",
    "read_dialogues",
    "read_items",
    "save_bundle",
    "train_recommender",
    "write_dialogues",
    "write_items",
]


if not TYPE_CHECKING:  # else every misspelt name would pass as Any

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
