"""Generative conversational recommendation, fast.

Names are loaded on first use, so `import crs_fast` needs neither transformers nor triton.
"""

from __future__ import annotations

import importlib
from typing import Any

from crs_fast._version import __version__

_HOMES = {
    "trie": ("ItemFilter", "SidTrie", "SidVocab", "TrieSlot"),
    "decode": ("RecommendOutput", "SidLogitsProcessor", "beam_search", "recommend"),
    "quantize": ("RQKMeans", "RQVAE", "resolve_collisions"),
    "crs.recommender": ("Recommender",),
    "crs.turn": ("TurnCache",),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("crs", "decode", "ops", "quantize", "trie")

__all__ = ["__version__", "show_config", *_WHERE, *_ROOMS]


def show_config() -> dict[str, Any]:
    """What was built and what is missing, with versions; `crs-fast info` prints it."""
    import platform

    import torch

    from crs_fast import _native

    return {
        "crs_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_native.describe(),
    }


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
