"""Per-request item filters: bitmaps over one shared trie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import FilterTensors

if TYPE_CHECKING:
    from .sid_trie import SidTrie

_BITS = 64


class ItemFilter:
    """Which items each of F requests may get. Combine with `&`, `|`, `~`; stack with `stack`.

    mask: bool [F, N] is not kept; `tensors` holds it as 64-bit words with rank, so that whether
    any allowed item is below a node costs the same whatever the catalogue's size.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"ItemFilter: mask must be bool [F, N] (got {mask.dtype} {tuple(mask.shape)})"
            )
        self.num_items = mask.shape[1]
        self.tensors = _pack(mask)

    @classmethod
    def make(cls, trie: SidTrie, allow: Any = None, deny: Any = None) -> ItemFilter:
        """See `SidTrie.filter`."""
        if allow is None and deny is None:
            raise ValueError("SidTrie.filter: allow or deny must be given (got neither)")
        mask = torch.ones(trie.num_items, dtype=torch.bool)
        if allow is not None:
            mask &= _as_mask(trie, allow)
        if deny is not None:
            mask &= ~_as_mask(trie, deny)
        return cls(mask[None]).to(trie.device)

    @classmethod
    def stack(cls, filters: Sequence[ItemFilter | None]) -> ItemFilter:
        """One filter a request, in order; None filters nothing.

        Raises:
            ValueError: no filter at all, or filters over catalogues of different sizes.
        """
        given = [f for f in filters if f is not None]
        sizes = {f.num_items for f in given}
        if len(sizes) != 1:
            raise ValueError(
                "ItemFilter.stack: filters must hold at least one filter, all over one catalogue "
                f"(got {len(given)} over catalogues of {sorted(sizes)} items)"
            )
        free = torch.ones(1, sizes.pop(), dtype=torch.bool, device=given[0].device)
        return cls(torch.cat([free if f is None else f.mask() for f in filters]))

    @property
    def num_requests(self) -> int:
        return self.tensors.words.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tensors.words.device

    def mask(self) -> torch.Tensor:
        """bool [F, N] over items in sorted SID order."""
        shifts = torch.arange(_BITS, device=self.device)
        bits = (self.tensors.words[..., None] >> shifts) & 1  # [F, W, 64]
        return bits.flatten(1)[:, : self.num_items].bool()

    def to(self, device: torch.device | str) -> ItemFilter:
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(ItemFilter)
        moved.num_items = self.num_items
        moved.tensors = FilterTensors(*(t.to(device) for t in self.tensors))
        return moved

    def __and__(self, other: ItemFilter) -> ItemFilter:
        return ItemFilter(self.mask() & other.mask())

    def __or__(self, other: ItemFilter) -> ItemFilter:
        return ItemFilter(self.mask() | other.mask())

    def __invert__(self) -> ItemFilter:
        return ItemFilter(~self.mask())

    def __repr__(self) -> str:
        return f"ItemFilter(num_requests={self.num_requests}, num_items={self.num_items})"


def _as_mask(trie: SidTrie, which: Any) -> torch.Tensor:
    """bool [N] from item ids or from a mask."""
    if isinstance(which, ItemFilter):
        return which.mask().cpu()[0]
    if hasattr(which, "dtype") and str(which.dtype).removeprefix("torch.") == "bool":
        mask = torch.as_tensor(which).cpu().reshape(-1)
        if mask.numel() != trie.num_items:
            raise ValueError(
                f"SidTrie.filter: a mask must have one entry an item, {trie.num_items} "
                f"(got {mask.numel()})"
            )
        return mask
    mask = torch.zeros(trie.num_items, dtype=torch.bool)
    mask[trie.item_ids.positions(which)] = True
    return mask


def _pack(mask: torch.Tensor) -> FilterTensors:
    """64 items a word; one word more than needed, so that position N has one."""
    rows, items = mask.shape
    words = items // _BITS + 1
    padded = torch.zeros(rows, words * _BITS, dtype=torch.int64, device=mask.device)
    padded[:, :items] = mask
    bits = padded.view(rows, words, _BITS)
    count = bits.sum(2)
    rank = (count.cumsum(1) - count).to(torch.int32)
    packed = (bits << torch.arange(_BITS, device=mask.device)).sum(2)
    return FilterTensors(packed, rank)
