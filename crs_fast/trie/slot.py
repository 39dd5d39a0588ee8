"""A trie at addresses that stay: what a server decodes with while catalogues change."""

from __future__ import annotations

import torch

from crs_fast.ops import TrieTensors

from .item_ids import ItemIds
from .sid_trie import SidTrie

_BITS = 64
# Only a depth with fewer nodes than one in so many items has starts (csrc/trie_build.cpp).
_SPARSE = 32


class TrieSlot:
    """Room for one trie. `load` copies another catalogue in, so that kernels recorded in a CUDA
    graph read it without being recorded again.

        slot = TrieSlot(capacity=2_000_000, num_levels=4, num_codes=256, device="cuda")
        slot.load(trie)          # between requests, on the stream that decodes
        recommend(model, ids, trie=slot.trie, vocab=vocab)

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
        if capacity < 1 or num_levels < 1 or num_codes < 1:
            raise ValueError(
                "TrieSlot: capacity, num_levels and num_codes must be at least 1 "
                f"(got {capacity}, {num_levels}, {num_codes})"
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
        # What was loaded last (at first: no items). Good until the next `load`.
        self.trie = SidTrie(
            self.tensors, ItemIds(numbers=torch.empty(0, dtype=torch.int32, device="cpu"))
        )

    def load(self, trie: SidTrie) -> SidTrie:
        """Copy a trie in; nothing is changed where it does not fit. Returns `self.trie`.

        Raises:
            ValueError: more items or codes than there is room for, or other levels.
        """
        size = max(trie.level_sizes(), default=0)
        levels = self.tensors.num_levels
        if trie.num_items > self.capacity or trie.num_levels != levels or size > self.num_codes:
            raise ValueError(
                f"TrieSlot.load: trie must have at most {self.capacity} items, {levels} levels and "
                f"at most {self.num_codes} codes a level "
                f"(got {trie.num_items}, {trie.num_levels} and {size})"
            )
        mine, other = self.tensors, trie.tensors.used()
        used = trie.num_items // _BITS + 1
        for here, there in ((mine.bits, other.bits), (mine.rank, other.rank)):
            here[:, :used].copy_(there, non_blocking=True)
        mine.bits[:, used:].zero_()
        nodes = other.level[1:, 0] - other.level[:-1, 0]
        mine.rank[:, used:] = nodes[:, None].to(mine.rank)
        for here, there in ((mine.codes, other.codes), (mine.starts, other.starts)):
            here[: there.numel()].copy_(there, non_blocking=True)
        mine.level.copy_(other.level, non_blocking=True)
        self.trie = SidTrie(self.tensors, trie.item_ids)
        return self.trie
