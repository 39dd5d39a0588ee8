"""Faster ways that a model may not allow: tried, and given up with a warning."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_given_up: weakref.WeakKeyDictionary[Any, set[Hashable]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def attempt(model: PreTrainedModel, way: str, case: Hashable, run: Callable[[], T]) -> T | None:
    """`run()`, or None where it fails or has failed before for this model and case. The first
    failure of a kind is a warning that names the way and the reason."""
    with _lock:
        known = _given_up.setdefault(model, set())
    if (way, case) in known:
        return None
    try:
        return run()
    except Exception as problem:
        # Whatever a model's code raises, the answer is the same: not this way. What is wrong with
        # the call itself, the plain way will say.
        first = (str(problem).splitlines() or [""])[0]
        known.add((way, case))
        reason = f"{type(problem).__name__}: {first}"
        if (way, reason) not in known:
            known.add((way, reason))
            # Two frames below `recommend`, which stands under a decorator.
            warnings.warn(f"recommend: {way} is given up for this call: {reason}", stacklevel=5)
        return None
