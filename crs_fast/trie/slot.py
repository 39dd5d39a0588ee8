"""A trie at addresses that stay: what a server decodes with while catalogues change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from crs_fast.ops import TrieTensors
from crs_fast.ops.trie.checks import TRIES

from .item_ids import ItemIds
from .sid_trie import SidTrie

_BITS = 64
# Only a depth with fewer nodes than one in so many items has starts (csrc/trie_build.cpp).
_SPARSE = 32


class TrieSlot:
    """Room for one trie. `load` copies another catalogue in, so that kernels recorded in a CUDA
    graph read it without being recorded again.

        slot = TrieSlot(capacity=2_000_000, num_levels=4, num_codes=256, device="cuda")
        slot.load(trie)
        recommend(model, ids, trie=slot.trie, vocab=vocab)

    Threads may share it: `load` waits until the searches that read the old catalogue are done, and
    new ones wait for it. A search with the trie of an earlier `load` is refused.

    Args:
        capacity: the most items it takes.
        num_levels: levels of every trie it takes.
        num_codes: the most codes a level has.
        device: where it stands.
    """

    def __init__(
        self,
        capacity: int,
        *,
        num_levels: int,
        num_codes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (
            ("capacity", capacity), ("num_levels", num_levels), ("num_codes", num_codes)
        ):  # fmt: skip
            if not hasattr(value, "__index__"):
                raise ValueError(f"TrieSlot: {name} must be an integer (got {value!r})")
        if capacity < 1 or num_levels < 1 or num_codes < 1:
            raise ValueError(
                "TrieSlot: capacity, num_levels and num_codes must be at least 1 "
                f"(got {capacity}, {num_levels}, {num_codes})"
            )
        if capacity >= 1 << 28 or num_levels > 127 or num_codes > 1 << 31:
            raise ValueError(
                "TrieSlot: capacity must be below 2^28, num_levels at most 127 and num_codes at "
                f"most 2^31 (got {capacity}, {num_levels}, {num_codes})"
            )
        self.capacity, self.num_codes = capacity, num_codes
        dtype = (
            torch.uint8 if num_codes <= 1 << 8 else torch.int16 if num_codes <= 1 << 15
            else torch.int32
        )  # fmt: skip
        words = capacity // _BITS + 1
        self.tensors = TrieTensors(
            torch.zeros(capacity * num_levels, dtype=dtype, device=device),
            torch.zeros(num_levels, words, dtype=torch.int64, device=device),
            torch.zeros(num_levels, words, dtype=torch.int32, device=device),
            torch.zeros(num_levels * (capacity // _SPARSE), dtype=torch.int32, device=device),
            torch.zeros(num_levels + 1, 2, dtype=torch.int64, device=device),
        )
        self._turns = _Turns()
        TRIES.remember(self.tensors, guard=self._turns)
        # What was loaded last (at first: no items). Good until the next `load`.
        self.trie: SidTrie = _SlotTrie(
            self, ItemIds(numbers=torch.empty(0, dtype=torch.int32, device="cpu"))
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        TRIES.remember(self.tensors, guard=self._turns)

    def load(self, trie: SidTrie) -> SidTrie:
        """Copy a trie in; nothing is changed where it does not fit. Returns `self.trie`.

        Raises:
            ValueError: more items or codes than there is room for, or other levels.
            RuntimeError: this thread is in the middle of a search over the slot.
        """
        if not isinstance(trie, SidTrie):
            raise ValueError(f"TrieSlot.load: trie must be a SidTrie (got {type(trie).__name__})")
        with trie.reading():
            size = max(trie.level_sizes(), default=0)
            other, item_ids = trie.tensors.used(), trie.item_ids
        levels = self.tensors.num_levels
        if trie.num_items > self.capacity or trie.num_levels != levels or size > self.num_codes:
            raise ValueError(
                f"TrieSlot.load: trie must have at most {self.capacity} items, {levels} levels and "
                f"at most {self.num_codes} codes a level "
                f"(got {trie.num_items}, {trie.num_levels} and {size})"
            )
        if trie is self.trie:
            return trie
        with self._turns.writing():
            self._copy(other, trie.num_items)
            self.trie = _SlotTrie(self, item_ids)
            return self.trie

    def _copy(self, other: TrieTensors, num_items: int) -> None:
        mine = self.tensors
        used = num_items // _BITS + 1
        for here, there in ((mine.bits, other.bits), (mine.rank, other.rank)):
            here[:, :used].copy_(there, non_blocking=True)
        mine.bits[:, used:].zero_()
        nodes = other.level[1:, 0] - other.level[:-1, 0]
        mine.rank[:, used:] = nodes[:, None].to(mine.rank)
        for here, there in ((mine.codes, other.codes), (mine.starts, other.starts)):
            here[: there.numel()].copy_(there, non_blocking=True)
        mine.level.copy_(other.level, non_blocking=True)
        if mine.level.is_cuda:  # the next reader may use another stream
            torch.cuda.current_stream(mine.level.device).synchronize()


class _SlotTrie(SidTrie):
    """What a slot holds since its latest `load`."""

    def __init__(self, slot: TrieSlot, item_ids: ItemIds) -> None:
        super().__init__(slot.tensors, item_ids)
        self._slot = slot

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._slot._turns:
            if self._slot.trie is not self:
                raise ValueError(
                    "TrieSlot: trie must be slot.trie of the latest load "
                    "(got that of an earlier one, whose catalogue is gone)"
                )
            yield


class _Turns:
    """Any number of threads read, or one writes. A context manager for readers, who may enter it
    again."""

    def __init__(self) -> None:
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # nobody reads or writes a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._readers: dict[int, int] = {}  # by thread: how often it has entered
        self._writers = 0  # that write or wait for it
        self._writer: int | None = None

    def _own(self) -> threading.Condition:
        """The parent's threads are not in a forked child."""
        if self._process != os.getpid():
            self._start()
        return self._changed

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._own():
            if thread not in self._readers and self._writer != thread:
                self._changed.wait_for(lambda: not self._writers)
            self._readers[thread] = self._readers.get(thread, 0) + 1

    def __exit__(self, *_: Any) -> None:
        thread = threading.get_ident()
        with self._own():
            left = self._readers.pop(thread, 1) - 1
            if left:
                self._readers[thread] = left
            else:
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._own():
            if thread in self._readers:
                raise RuntimeError(
                    "TrieSlot.load: the slot must not be read by the thread that loads it "
                    "(got a call from within a search)"
                )
            self._writers += 1
            self._changed.wait_for(lambda: not self._readers and self._writer is None)
            self._writer = thread
        try:
            yield
        finally:
            with self._own():
                self._writers -= 1
                self._writer = None
                self._changed.notify_all()
