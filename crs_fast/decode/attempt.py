"""Faster ways that a model may not allow: tried, and given up with a warning."""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_given_up: weakref.WeakKeyDictionary[Any, set[Hashable]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def attempt(
    model: PreTrainedModel,
    way: str,
    case: Hashable,
    run: Callable[[], T],
    otherwise: Callable[[], T],
) -> T:
    """`run()`, or `otherwise()` where that fails or has failed before for this model and case. The
    first failure of a kind is a warning that names the way and the reason.

    A failure is remembered once `otherwise` has done the same call: where that fails too, the call
    is wrong and not the way. Memory that runs out says nothing of the model and is raised.
    """
    known = _known(model)
    if (way, case) in known:
        return otherwise()
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:
        # Whatever a model's code raises, the answer is the same: not this way.
        reason = _told(problem)
    found = otherwise()
    known.add((way, case))
    give_up(model, way, reason)
    return found


def _told(problem: BaseException) -> str:
    """A failure and what it came after: a capture that breaks fails once more where it ends."""
    first = (str(problem).splitlines() or [""])[0]
    told, before = f"{type(problem).__name__}: {first}", problem.__context__
    return told if before is None else f"{told}, after {_told(before)}"


def give_up(model: PreTrainedModel, way: str, reason: str) -> None:
    """Warn whoever called the package, once a model and reason."""
    known = _known(model)
    if (way, reason) not in known:
        known.add((way, reason))
        message = f"recommend: {way} is given up for this call: {reason}"
        warnings.warn(message, stacklevel=_level_of_caller())


def _known(model: PreTrainedModel) -> set[Hashable]:
    with _lock:
        return _given_up.setdefault(model, set())


def _level_of_caller() -> int:
    """`stacklevel`, for who calls this, of the first frame that is neither ours nor that of a
    library which calls us."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("crs_fast", "torch", "transformers")
