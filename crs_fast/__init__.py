"""Generative conversational recommendation, fast.

Names are loaded on first use, so `import crs_fast` needs neither transformers nor triton.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:  # what type checkers and editors see; `_HOMES` says the same to Python
    from . import crs, decode, ops, quantize, trie
    from .crs.recommender import Recommender
    from .crs.turn import TurnCache
    from .decode import RecommendOutput, SidLogitsProcessor
    from .decode.beam_search import beam_search
    from .decode.recommend import recommend
    from .quantize import RQVAE as RQVAE
    from .quantize import RQKMeans as RQKMeans
    from .quantize import resolve_collisions
    from .trie import (
        ItemFilter,
        Named,
        SidIndex,
        SidTrie,
        SidVocab,
        TrieSlot,
        find_items,
        load_index,
        typed_catalogue,
    )

_HOMES = {
    "trie": (
        "ItemFilter",
        "Named",
        "SidIndex",
        "SidTrie",
        "SidVocab",
        "TrieSlot",
        "find_items",
        "load_index",
        "typed_catalogue",
    ),
    "decode": ("RecommendOutput", "SidLogitsProcessor"),
    "decode.beam_search": ("beam_search",),
    "decode.recommend": ("recommend",),
    "quantize": ("RQKMeans", "RQVAE", "resolve_collisions"),
    "crs.recommender": ("Recommender",),
    "crs.turn": ("TurnCache",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("crs", "decode", "ops", "quantize", "trie")

# What `from crs_fast import *` binds. RQVAE and RQKMeans are public too, but they are models of
# transformers, which a star import must not load.
__all__ = [
    "ItemFilter",
    "Named",
    "RecommendOutput",
    "Recommender",
    "SidIndex",
    "SidLogitsProcessor",
    "SidTrie",
    "SidVocab",
    "TrieSlot",
    "TurnCache",
    "__version__",
    "beam_search",
    "crs",
    "decode",
    "find_items",
    "load_index",
    "ops",
    "quantize",
    "recommend",
    "resolve_collisions",
    "show_config",
    "trie",
    "typed_catalogue",
]


def show_config() -> dict[str, Any]:
    """What was built and what is missing, with versions; `crs-fast info` prints it."""
    import platform

    import torch

    from . import _native

    return {
        "crs_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_native.describe(),
    }


if not TYPE_CHECKING:  # else every misspelt name would pass as Any

    def __getattr__(name: str) -> Any:
        if name in _HOME_OF:
            return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
        if name in _ROOMS:
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOME_OF, *_ROOMS})
