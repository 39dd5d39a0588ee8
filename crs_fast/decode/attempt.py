"""Faster engines that a model may not allow: tried, and given up with a warning."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from .lm.model_state import ModelState

T = TypeVar("T")


class Attempts:
    """The faster engines that one call of `recommend` tries in turn.

        attempts = Attempts(state)
        result = attempts.run("cuda_graph", shape, fast)
        if result is None:
            result = plain()
        attempts.remember()

    A failure is remembered, and said in a warning, only after the same call was answered in another
    way. Where that fails too, the call is wrong and not the engine.
    """

    def __init__(self, state: ModelState) -> None:
        self._state = state
        self._failures: list[tuple[str, Hashable, str]] = []

    def run(self, option: str, case: Hashable, engine: Callable[[], T]) -> T | None:
        """What `engine` gives; None where it fails or has failed before for this model.

        Args:
            option: the argument of `recommend` that asked for the engine.
            case: what else the failure depends on.

        Raises:
            OutOfMemoryError: memory that runs out says nothing about the model.
        """
        if (option, case) in self._state.failures:
            return None
        try:
            return engine()
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:
            # Whatever a model's code raises, the answer is the same: not with this engine.
            self._failures.append((option, case, _reason(problem)))
            return None

    def remember(self) -> None:
        """The call was answered: its failures are the engines'."""
        for option, case, reason in self._failures:
            self._state.failures.add((option, case))
            give_up(self._state, option, reason)


def give_up(state: ModelState, option: str, reason: str) -> None:
    """Warn the caller of the package, once per model and reason."""
    state.warn_once(f"recommend: {option} is given up for this call: {reason}")


def _reason(problem: BaseException) -> str:
    """The failure, and the one before it: a capture that breaks fails once more where it ends."""
    first_line = (str(problem).splitlines() or [""])[0]
    reason, before = f"{type(problem).__name__}: {first_line}", problem.__context__
    return reason if before is None else f"{reason}, after {_reason(before)}"
