"""The constraint index over a catalogue's semantic IDs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import TrieTensors, trie_build, trie_walk
from crs_fast.ops.tensors import END

from .item_ids import ItemIds

if TYPE_CHECKING:
    from .item_filter import ItemFilter


class SidTrie:
    """A frozen trie over semantic IDs, nodes in breadth-first order.

    Make one with `SidTrie.from_sids` or `SidTrie.load`. It holds no state that changes, so threads
    may share it.
    """

    def __init__(self, tensors: TrieTensors, item_ids: ItemIds) -> None:
        self.tensors = tensors
        self.item_ids = item_ids  # in sorted SID order
        bounds = tensors.level_begin.tolist()
        self._level_bounds = list(pairwise(bounds[1:]))

    @classmethod
    def from_sids(cls, sids: Any, item_ids: Any = None) -> SidTrie:
        """Build the trie, in C++.

        Args:
            sids: int [N, L] as tensor, numpy array or list; -1 pads ragged rows; a list of lists
                of unequal length is padded here. Rows may repeat: several items on one SID.
            item_ids: N distinct int or str ids; None means 0 .. N-1.

        Raises:
            ValueError: codes outside [0, 2^31 - 2], an empty row, a code after padding, ids that
                repeat or differ in number from the rows.
        """
        rows = _sid_tensor(sids)
        ids = ItemIds.make(range(rows.shape[0]) if item_ids is None else item_ids)
        if len(ids) != rows.shape[0]:
            raise ValueError(
                f"SidTrie.from_sids: item_ids must hold one id a SID, {rows.shape[0]} "
                f"(got {len(ids)})"
            )
        tensors, order = trie_build(rows)
        return cls(tensors, ids.take(order.long()))

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        return self.tensors.num_levels

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return self.tensors.item_begin.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of the index, item ids included."""
        return sum(t.nbytes for t in self.tensors) + self.item_ids.nbytes

    @property
    def device(self) -> torch.device:
        return self.tensors.code.device

    def level_sizes(self) -> list[int]:
        """One more than the highest code, for each level."""
        code = self.tensors.code
        return [int(code[a - 1 : b - 1].max()) + 1 if b > a else 0 for a, b in self._level_bounds]

    def to(self, device: torch.device | str) -> SidTrie:
        """The same trie with its index on another device; item ids stay on the CPU."""
        return SidTrie(TrieTensors(*(t.to(device) for t in self.tensors)), self.item_ids)

    def items(self, sids: Any) -> list[list[int | str]]:
        """The items that carry each SID, in the order they were given; [] for a SID of no item.

        Args:
            sids: int [n, L'], -1 pads.
        """
        begin, end = self.item_ranges(_sid_tensor(sids))
        return [self.item_ids[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

    def item_ranges(self, sids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the items on each SID stand in sorted order: begin, end int64 [n]; empty ranges
        for a SID of no item. `sids`: int64 [n, L'], -1 pads; columns past the trie's levels
        must be padding."""
        trie = self.tensors
        nodes = trie_walk(trie, sids.to(self.device))
        at = nodes.clamp(min=0)
        first, last = trie.child_begin[at].long(), trie.child_begin[at + 1].long()
        leaf = first == last
        # A SID that prefixes a longer one ends in an edge of its own, the node's first.
        if trie.code.numel():
            ended = ~leaf & (trie.code[first.clamp(max=trie.code.numel() - 1)] == END)
            at = torch.where(ended, first + 1, at)
        else:
            ended = torch.zeros_like(leaf)
        whole = (nodes > 0) & (leaf | ended)
        begin, end = trie.item_begin[at].long(), trie.item_end[at].long()
        return torch.where(whole, begin, 0), torch.where(whole, end, 0)

    def sids(self, item_ids: Sequence[int | str] | torch.Tensor | None = None) -> torch.Tensor:
        """The SIDs of items: int64 [n, L], -1 pads, on the CPU. None means all, in sorted order.

        Raises:
            KeyError: an id that is not in the catalogue.
        """
        if item_ids is None:
            position = torch.arange(self.num_items)
        else:
            position = self.item_ids.positions(item_ids)
        out = torch.full((position.numel(), self.num_levels), -1, dtype=torch.int64)
        item_begin, item_end = self.tensors.item_begin.cpu(), self.tensors.item_end.cpu()
        code = self.tensors.code.cpu()
        for level, (first, last) in enumerate(self._level_bounds):
            if last == first:
                break
            node = torch.searchsorted(item_begin[first:last], position.int(), right=True) - 1
            node = node.clamp(min=0) + first
            inside = (item_begin[node] <= position) & (position < item_end[node])
            out[:, level] = torch.where(inside, code[node - 1].long(), -1)
        return out

    def filter(self, allow: Any = None, deny: Any = None) -> ItemFilter:
        """Restrict a request to some items, exactly: a prefix is legal only if an allowed item is
        below it.

        Args:
            allow, deny: item ids, or a boolean mask [N] over items in sorted SID order
                (`trie.item_ids`). With both, allowed and not denied.

        Raises:
            ValueError: neither is given.
            KeyError: an id that is not in the catalogue.
        """
        from .item_filter import ItemFilter

        return ItemFilter.make(self, allow, deny)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trie to one versioned, checksummed safetensors file, whole or not at all."""
        from .storage import save_trie

        save_trie(self, path)

    @staticmethod
    def load(path: str | PathLike[str]) -> SidTrie:
        """Read a trie written by `save`.

        Raises:
            ValueError: the file is damaged, of another version, or inconsistent.
        """
        from .storage import load_trie

        return load_trie(path)

    def __repr__(self) -> str:
        return (
            f"SidTrie(num_items={self.num_items}, num_levels={self.num_levels}, "
            f"num_nodes={self.num_nodes}, nbytes={self.nbytes}, device={self.device})"
        )


def _sid_tensor(sids: Any) -> torch.Tensor:
    """int64 [N, L] on the CPU; lists of unequal length are padded with -1."""
    if isinstance(sids, Sequence) and sids and isinstance(sids[0], Sequence):
        width = max(len(row) for row in sids)
        sids = [[*row, *[-1] * (width - len(row))] for row in sids]
    tensor = torch.as_tensor(sids)
    if tensor.ndim != 2 or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(
            f"SidTrie: sids must be integers [N, L] (got {tensor.dtype} {tuple(tensor.shape)})"
        )
    return tensor.to("cpu", torch.int64)
