"""What is remembered of a model: one object, which lives as long as the model."""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from .recordings import MAX_STEP_RECORDINGS, Recordings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Capability(NamedTuple):
    """attention: "tree" (tree attention), "mask" (the model's own attention with a 4-D mask) or
    None, and then `reason` says why not. `is_lasting`: whether it may be remembered."""

    attention: str | None
    reason: str = ""
    is_lasting: bool = True


class Sequential(NamedTuple):
    """How a model decodes beams that are sequences of their own, without a tree.

    use_cache: by Hugging Face beam search and the model's cache; else by plain forward passes
    pads: whether prompts of unequal length may share a batch
    """

    use_cache: bool
    pads: bool


class ModelState:
    """What is remembered of one model. Holds no reference to the model.

    lock: one per model, for what must not happen twice at a time: probing the model, recording or
        replaying its CUDA graphs, giving a warning for the first time. What is remembered already
        is read without it.
    capabilities: what the probe found, for each state of the model that it depends on
    sequential: how beams are decoded one after the other, for each state of the model that it
        depends on
    failures: the options of `recommend` that failed, each with the case in which it did, and what
        else could not be recorded
    recordings: its CUDA graphs of searches
    step_recordings: those of steps in which replies are written, in memory of their own
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.capabilities: dict[Hashable, Capability] = {}
        self.sequential: dict[Hashable, Sequential] = {}
        self.failures: set[tuple[str, Hashable]] = set()
        self.recordings = Recordings(self.lock)
        self.step_recordings = Recordings(self.lock, MAX_STEP_RECORDINGS)
        self._warnings: set[str] = set()

    @staticmethod
    def of(model: PreTrainedModel) -> ModelState:
        state = _states.get(model)
        if state is None:
            with _states_lock:
                state = _states.setdefault(model, ModelState())
        return state

    def warn_once(self, message: str) -> None:
        """Give a warning to the caller of this package, unless it was given before."""
        if message in self._warnings:
            return
        with self.lock:
            is_new = message not in self._warnings
            self._warnings.add(message)
        if is_new:
            warnings.warn(message, stacklevel=_level_of_caller())


# The lock is held while the map is changed and at no other time, so no model waits for another.
_states: weakref.WeakKeyDictionary[PreTrainedModel, ModelState] = weakref.WeakKeyDictionary()
_states_lock = threading.Lock()


def _level_of_caller() -> int:
    """`stacklevel`, for the function that asks, of the first frame that belongs neither to this
    package nor to a library that calls it."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_internal(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_internal(module: str) -> bool:
    return module.partition(".")[0] in ("crs_fast", "torch", "transformers")
