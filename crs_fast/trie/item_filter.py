"""Per-request item filters: bitmaps over one shared trie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from crs_fast.ops import FilterTensors, TrieTensors
from crs_fast.ops.host import as_integers, as_tensor
from crs_fast.ops.trie.checks import FILTERS
from crs_fast.ops.trie.nodes import popcount

from .item_ids import ItemIds

_BITS = 64


class Catalogue(Protocol):
    """What a filter needs to know of the trie that it is over."""

    tensors: TrieTensors
    item_ids: ItemIds

    @property
    def num_items(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


class ItemFilter:
    """Which items each of F requests may get. Combine with `&`, `|`, `~`; stack with `stack`.

    mask: bool [F, N] is not kept; `tensors` holds it as 64-bit words with rank, so that whether
    any allowed item is below a node costs the same whatever the catalogue's size. `item_ids` are
    those of the catalogue it was made for; a filter made of a mask alone knows their number only.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        if not isinstance(mask, torch.Tensor):
            raise ValueError(f"ItemFilter: mask must be a torch tensor (got {type(mask).__name__})")
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"ItemFilter: mask must be bool [F, N] (got {mask.dtype} {tuple(mask.shape)})"
            )
        if mask.is_meta or mask.layout != torch.strided:
            raise ValueError(
                f"ItemFilter: mask must be in memory (got {mask.layout} on {mask.device})"
            )
        self.num_items = mask.shape[1]
        self.item_ids: ItemIds | None = None
        self.tensors = _ranked(_pack(mask).to(mask.device))

    @classmethod
    def _of_words(cls, words: torch.Tensor, num_items: int, item_ids: ItemIds | None) -> ItemFilter:
        made = object.__new__(cls)
        made.num_items, made.item_ids, made.tensors = num_items, item_ids, _ranked(words)
        return made

    @classmethod
    def make(cls, trie: Catalogue, allow: Any = None, deny: Any = None) -> ItemFilter:
        """See `SidTrie.filter`."""
        if allow is None and deny is None:
            raise ValueError("SidTrie.filter: allow or deny must be given (got neither)")
        mask = torch.ones(trie.num_items, dtype=torch.bool, device="cpu")
        if allow is not None:
            mask &= _as_mask(trie, allow)
        if deny is not None:
            mask &= ~_as_mask(trie, deny)
        words = _of_width(_pack(mask[None]), trie.tensors.bits.shape[1])
        return cls._of_words(words.to(trie.device), trie.num_items, trie.item_ids)

    @classmethod
    def stack(cls, filters: Sequence[ItemFilter | None]) -> ItemFilter:
        """One filter per request, in order; None filters nothing.

        Raises:
            ValueError: no filter at all, or filters over different catalogues.
        """
        if not isinstance(filters, Sequence) or isinstance(filters, str):
            raise ValueError(
                "ItemFilter.stack: filters must be a list of filters "
                f"(got {type(filters).__name__})"
            )
        given = [_checked(f) for f in filters if f is not None]
        if not given:
            raise ValueError("ItemFilter.stack: filters must hold at least one filter (got none)")
        known = next((f for f in given if f.item_ids is not None), given[0])
        for one in given:
            one._check_over("one catalogue of", known.num_items, known.item_ids)
        width = max(f.tensors.words.shape[1] for f in given)
        free = _all_items(width, known.num_items).to(known.device)
        words = [free if f is None else _of_width(f.tensors.words, width) for f in filters]
        return cls._of_words(torch.cat(words), known.num_items, known.item_ids)

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
        return ItemFilter._of_words(self.tensors.words.to(device), self.num_items, self.item_ids)

    def select(self, rows: Sequence[int]) -> ItemFilter:
        """The filters of some requests."""
        index = as_integers("ItemFilter.select: rows", rows)
        if index.ndim != 1 or bool(((index < 0) | (index >= self.num_requests)).any()):
            raise ValueError(
                f"ItemFilter.select: rows must be a list of 0 .. {self.num_requests - 1} "
                f"(got {rows!r})"
            )
        words = self.tensors.words[index.to(self.device)]
        return ItemFilter._of_words(words, self.num_items, self.item_ids)

    def over(self, trie: Catalogue) -> ItemFilter:
        """This filter on the trie's device, its bitmaps as wide as the trie's: those of a
        `TrieSlot` have room for more items.

        Raises:
            ValueError: it was made for another catalogue.
        """
        if not hasattr(trie, "tensors") or not hasattr(trie, "item_ids"):
            raise ValueError(f"ItemFilter.over: trie must be a SidTrie (got {type(trie).__name__})")
        self._check_over("the trie's", trie.num_items, trie.item_ids)
        words = _of_width(self.tensors.words, trie.tensors.bits.shape[1])
        if words is self.tensors.words:
            return self.to(trie.device)
        return self._of_words(words.to(trie.device), self.num_items, self.item_ids)

    def __and__(self, other: ItemFilter) -> ItemFilter:
        return self._joined(self.tensors.words & self._words_of(other), other)

    def __or__(self, other: ItemFilter) -> ItemFilter:
        return self._joined(self.tensors.words | self._words_of(other), other)

    def __invert__(self) -> ItemFilter:
        words = self.tensors.words
        everything = _all_items(words.shape[1], self.num_items).to(self.device)
        return self._of_words(~words & everything, self.num_items, self.item_ids)

    def _joined(self, words: torch.Tensor, other: ItemFilter) -> ItemFilter:
        item_ids = other.item_ids if self.item_ids is None else self.item_ids
        return self._of_words(words, self.num_items, item_ids)

    def _words_of(self, other: ItemFilter) -> torch.Tensor:
        _checked(other)._check_over("one catalogue of", self.num_items, self.item_ids)
        return _of_width(other.tensors.words, self.tensors.words.shape[1]).to(self.device)

    def _check_over(self, whose: str, num_items: int, item_ids: ItemIds | None) -> None:
        """
        Raises:
            ValueError: positions mean other items here.
        """
        mine, got = self.item_ids, f"{self.num_items}"
        if self.num_items == num_items:
            if mine is None or item_ids is None or mine.same_as(item_ids):
                return
            got = "others, or in another order"
        raise ValueError(
            f"ItemFilter: filters must be over {whose} {num_items} items (got filters over {got})"
        )

    def __repr__(self) -> str:
        return f"ItemFilter(num_requests={self.num_requests}, num_items={self.num_items})"


def _checked(value: Any) -> ItemFilter:
    if not isinstance(value, ItemFilter):
        raise ValueError(f"ItemFilter: filters must be ItemFilter (got {type(value).__name__})")
    return value


def _as_mask(trie: Catalogue, which: Any) -> torch.Tensor:
    """bool [N] from item ids or from a mask."""
    if isinstance(which, list) and which and all(isinstance(one, bool) for one in which):
        which = torch.tensor(which, device="cpu")
    if hasattr(which, "dtype") and str(which.dtype).removeprefix("torch.") == "bool":
        mask = as_tensor(which).cpu().reshape(-1)
        if mask.numel() != trie.num_items:
            raise ValueError(
                f"SidTrie.filter: a mask must have one entry an item, {trie.num_items} "
                f"(got {mask.numel()})"
            )
        return mask
    mask = torch.zeros(trie.num_items, dtype=torch.bool, device="cpu")
    mask[trie.item_ids.positions(which)] = True
    return mask


def _pack(mask: torch.Tensor) -> torch.Tensor:
    """64 items a word, int64 [F, W] on the CPU; one word more than needed, so that position N has
    one."""
    rows, items = mask.shape
    packed = np.zeros((rows, (items // _BITS + 1) * _BITS // 8), dtype=np.uint8)
    packed[:, : (items + 7) // 8] = np.packbits(mask.cpu().numpy(), axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i8"))


def _of_width(words: torch.Tensor, width: int) -> torch.Tensor:
    """Bitmaps [F, W] of `width` words; both widths hold all items, so what is cut off is empty."""
    if words.shape[1] == width:
        return words
    return torch.nn.functional.pad(words, (0, width - words.shape[1]))  # less than 0 cuts


def _all_items(words: int, num_items: int) -> torch.Tensor:
    """The bitmap [1, words] that allows each of num_items."""
    bitmap = torch.full((1, words), -1, dtype=torch.int64, device="cpu")
    bitmap[:, num_items // _BITS :] = 0
    bitmap[:, num_items // _BITS] = (1 << num_items % _BITS) - 1
    return bitmap


def _ranked(words: torch.Tensor) -> FilterTensors:
    count = popcount(words)
    made = FilterTensors(words, (count.cumsum(1) - count).to(torch.int32))
    FILTERS.remember(made)
    return made


def stacked(filters: Sequence[ItemFilter | None]) -> ItemFilter | None:
    """The filters of all requests as one; None if no request has a filter."""
    return None if all(f is None for f in filters) else ItemFilter.stack(filters)
