"""Which tensors hold contents that were checked, so that a kernel may follow the indices in them.

To check contents costs a pass over them, so it is done once and remembered: what the package builds
is known from the start, what a caller puts together by hand is checked on its first use, and again
after it was written to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

Guard = AbstractContextManager[Any]


class _Entry(NamedTuple):
    """versions: how often each tensor had been written to; None where that is not counted
    guard: to be held while a kernel reads the tensors, where their owner may change them
    references: tell when one of the tensors is gone"""

    versions: list[int] | None
    guard: Guard | None
    references: list[weakref.ref[torch.Tensor]]


class CheckedContents:
    """The groups of tensors that passed one kind of check. Threads may share it."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Any, ...], _Entry] = {}

    def remember(
        self,
        tensors: Sequence[torch.Tensor],
        facts: tuple[Any, ...] = (),
        guard: Guard | None = None,
    ) -> None:
        """
        Args:
            facts: what else the check was about.
            guard: of an owner who changes the tensors and checks what it writes itself.
        """
        key = (*map(id, tensors), *facts)  # as in `find`
        entries = self._entries

        def forget(_: Any) -> None:
            entries.pop(key, None)

        references = [weakref.ref(tensor, forget) for tensor in tensors]
        entries[key] = _Entry(None if guard else _versions(tensors), guard, references)

    def find(self, tensors: Sequence[torch.Tensor], facts: tuple[Any, ...] = ()) -> _Entry | None:
        """What is remembered of these tensors, if they are as they were then."""
        key = (*map(id, tensors), *facts) if facts else tuple(map(id, tensors))
        entry = self._entries.get(key)
        if entry is None or entry.versions is None:
            return entry
        return entry if entry.versions == [tensor._version for tensor in tensors] else None

    def require(
        self,
        tensors: Sequence[torch.Tensor],
        facts: tuple[Any, ...],
        check: Callable[[], None],
    ) -> None:
        """Run `check`, which raises an error, unless these tensors are known. While nobody can look
        at values (a traced call, a CUDA graph that is recorded) they pass unchecked."""
        if self.find(tensors, facts) is not None or not _are_readable(tensors):
            return
        check()
        self.remember(tensors, facts)


def _versions(tensors: Sequence[torch.Tensor]) -> list[int] | None:
    if any(tensor.is_inference() for tensor in tensors):
        return None  # torch does not count writes to them
    return [tensor._version for tensor in tensors]


def _are_readable(tensors: Sequence[torch.Tensor]) -> bool:
    if any(type(tensor) is not torch.Tensor or tensor.is_meta for tensor in tensors):
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())
