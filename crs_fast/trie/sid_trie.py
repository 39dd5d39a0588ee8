"""The constraint index over a catalogue's semantic IDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, wraps
from itertools import pairwise
from operator import index
from os import PathLike
from typing import Any, TypeVar, cast

import numpy as np
import torch

from crs_fast.ops import (
    TrieTensors,
    trie_build,
    trie_insert,
    trie_remove,
    trie_rows,
    trie_walk,
)
from crs_fast.ops.trie.checks import TRIES, check_tensor, check_trie
from crs_fast.ops.trie.nodes import are_held, ending
from crs_fast.ops.trie.tensors import NO_NODE, NODE_BITS

from .item_filter import ItemFilter
from .item_ids import ItemIds
from .storage import load_trie, read_metadata, save_trie
from .token_ids import TokenIds
from .vocabulary import Vocabulary

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _while_reading(method: _Method) -> _Method:
    """The method, run inside `SidTrie.reading`."""

    @wraps(method)
    def run(self: SidTrie, *args: Any, **kwargs: Any) -> Any:
        with self.reading():
            return method(self, *args, **kwargs)

    return cast(_Method, run)


class SidTrie:
    """A frozen trie over semantic IDs.

    Make one with `SidTrie.from_sids` or `SidTrie.load`. It holds no state that changes, so threads
    may share it.
    """

    def __init__(self, tensors: TrieTensors, item_ids: ItemIds) -> None:
        check_trie("SidTrie", tensors)
        # On a GPU the question would wait for the device.
        if tensors.level.device.type == "cpu" and int(tensors.level[-1, 1]) != len(item_ids):
            raise ValueError(
                f"SidTrie: item_ids must hold one id for each of {int(tensors.level[-1, 1])} items "
                f"(got {len(item_ids)})"
            )
        self.tensors = tensors
        self.item_ids = item_ids  # in sorted SID order

    def reading(self) -> AbstractContextManager[None]:
        """What a search holds from its first look at the trie to its last: the catalogue of a
        `TrieSlot` does not change meanwhile."""
        return nullcontext()

    @classmethod
    def from_sids(
        cls, sids: Any, item_ids: Any = None, progress: Callable[[float], Any] | None = None
    ) -> SidTrie:
        """Build the trie, in C++ on all threads.

        Args:
            sids: int [N, L] as tensor, numpy array or list; -1 pads ragged rows; a list of lists
                of unequal length is padded here. Rows may repeat: several items on one SID.
            item_ids: N distinct int or str ids; None means 0 .. N-1.
            progress: called now and then with the finished share, 0 to 1. What it raises ends the
                build, as Ctrl-C does.

        Raises:
            ValueError: 2^28 rows or more, codes outside [0, 2^31 - 1], an empty row, a code after
                padding, ids that repeat or differ in number from the rows.
        """
        rows = _sid_tensor(sids)
        ids = None if item_ids is None else ItemIds.make(item_ids)
        if ids is not None and len(ids) != rows.shape[0]:
            raise ValueError(
                f"SidTrie.from_sids: item_ids must hold one id a SID, {rows.shape[0]} "
                f"(got {len(ids)})"
            )
        tensors, order = trie_build(rows, progress=progress)
        return cls(tensors, ItemIds(numbers=order) if ids is None else ids.take(order))

    @_while_reading
    def add(self, sids: Any, item_ids: Any) -> SidTrie:
        """A new trie with more items. Only these are sorted; what stands between them is copied.

        Args:
            sids: int [n, L'], -1 pads; L' may differ from this trie's levels.
            item_ids: n distinct ids of this catalogue's kind, none of them in it. Items that share
                a SID keep their order, the new ones come last.

        Raises:
            ValueError: as `from_sids`, and an id that is in the catalogue already.
        """
        added, ids = _sid_tensor(sids), ItemIds.make(item_ids)
        if len(ids) != added.shape[0]:
            raise ValueError(
                f"SidTrie.add: item_ids must hold one id a SID, {added.shape[0]} (got {len(ids)})"
            )
        self.item_ids.check_new(ids)
        levels = max(self.num_levels, added.shape[1])
        tensors, order, at = trie_insert(self._tensors_on("cpu"), _padded(added, levels))
        merged = self.item_ids.insert(at, ids.take(order))
        return SidTrie(tensors, merged).to(self.device)

    @_while_reading
    def remove(self, item_ids: Sequence[int | str] | torch.Tensor) -> SidTrie:
        """A new trie without some items: what stands between them is copied.

        Raises:
            KeyError: an id that is not in the catalogue.
        """
        at = self.item_ids.positions(item_ids, once=True).unique()
        tensors = trie_remove(self._tensors_on("cpu"), at)
        return SidTrie(tensors, self.item_ids.without(at)).to(self.device)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        return self.tensors.num_levels

    @property
    def num_nodes(self) -> int:
        """Distinct prefixes, the root included."""
        return int(self.tensors.level[-1, 0]) + 1

    @property
    def leaf(self) -> int:
        """A node after which nothing may follow."""
        # A range of one item, where there is one.
        return self.num_levels << (2 * NODE_BITS) | min(1, self.num_items) << NODE_BITS

    @property
    def nbytes(self) -> int:
        """Bytes of the index and of the item ids. The look-up table of int ids counts; that of str
        ids, which the first look-up makes, does not."""
        return sum(t.nbytes for t in self.tensors) + self.item_ids.nbytes

    @property
    def device(self) -> torch.device:
        return self.tensors.codes.device

    def level_sizes(self) -> list[int]:
        """One more than the highest code, for each level."""
        return list(self._level_sizes)

    @cached_property
    def _level_sizes(self) -> list[int]:
        # Reads every code, and every `recommend` asks.
        return [int(codes.max()) + 1 if codes.numel() else 0 for codes in self._codes_by_level()]

    @cached_property
    def level_codes(self) -> list[torch.Tensor]:
        """The distinct codes of each level, ascending, int64 [n] on the CPU."""
        return [codes.unique().long().cpu() for codes in self._codes_by_level()]

    @_while_reading
    def _codes_by_level(self) -> list[torch.Tensor]:
        bounds = self.tensors.level[:, 0].tolist()
        return [self.tensors.codes[a:b] for a, b in pairwise(bounds)]

    def vocabulary(self, vocab: Vocabulary | None, op: str = "SidTrie.vocabulary") -> Vocabulary:
        """`vocab`, checked; None means that the codes of this trie are token ids.

        Raises:
            ValueError: the trie has levels or codes that the vocabulary lacks.
        """
        if vocab is None:
            return self._token_ids
        if not isinstance(vocab, Vocabulary):
            raise ValueError(f"{op}: vocab must be a Vocabulary (got {type(vocab).__name__})")
        sizes = self._level_sizes
        if len(sizes) > vocab.num_levels or any(
            size > known for size, known in zip(sizes, vocab.sizes, strict=False)
        ):
            raise ValueError(
                f"{op}: vocab must have a token for each code of the trie, {sizes} a level "
                f"(got {vocab.sizes})"
            )
        lacking = vocab.codes_without_token(self.level_codes) if vocab.has_gaps else []
        if lacking:
            raise ValueError(
                f"{op}: vocab must have a token for each code of the trie (got none for code "
                f"{lacking[0][1]} of level {lacking[0][0]}: {len(lacking)} codes without)"
            )
        return vocab

    @cached_property
    def terminated(self) -> SidTrie:
        """The catalogue with one more code at the end of each SID, for a terminator whose log-prob
        counts: code 0, and every other code is one higher. So no SID is a prefix of another one,
        and items keep their order, which filters rely on."""
        rows = torch.nn.functional.pad(trie_rows(self.tensors).cpu() + 1, (0, 1))  # -1 becomes 0,
        rows[:, 1:].masked_fill_(rows[:, :-1] == 0, -1)  # and of all zeros the first one stays
        tensors, _ = trie_build(rows, num_sorted=rows.shape[0])
        return SidTrie(tensors, self.item_ids).to(self.device)

    @cached_property
    def _token_ids(self) -> TokenIds:
        return TokenIds(self.num_levels, max(1, *self._level_sizes))

    @_while_reading
    def to(self, device: torch.device | str) -> SidTrie:
        """The same trie with its index on another device; the item ids stay on the CPU."""
        moved = self._tensors_on(device)
        if moved.level is self.tensors.level:
            return self
        TRIES.remember(moved)
        return SidTrie(moved, self.item_ids)

    def _tensors_on(self, device: torch.device | str) -> TrieTensors:
        return TrieTensors(*(t.to(device) for t in self.tensors))

    @_while_reading
    def items(self, sids: Any) -> list[list[int | str]]:
        """The items that carry each SID, in the order they were given; [] for a SID of no item.

        Args:
            sids: int [n, L'], -1 pads.
        """
        begin, end = self.item_ranges(_sid_tensor(sids))
        return [self.item_ids[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

    @_while_reading
    def item_ranges(self, sids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of positions, in sorted order, of the items that carry each SID: begin and end,
        int64 [n]; empty for a SID of no item.

        Args:
            sids: int64 [n, L'], -1 pads; what lies past the trie's levels must be padding.
        """
        return self.items_at(trie_walk(self.tensors, sids.to(self.device)))

    @_while_reading
    def items_at(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of positions, in sorted order, of the items whose SIDs end at each node: begin
        and end, int64 of the shape of `nodes`; empty where none does, and for -1.

        Raises:
            ValueError: on the CPU, a node that is neither -1 nor one of a trie of this size; on a
                GPU it names no items.
        """
        check_tensor("SidTrie.items_at", "nodes", nodes, self.tensors.codes, (torch.int64,), None)
        is_node = are_held(self.tensors, nodes)
        if nodes.device.type == "cpu" and bool((~is_node & (nodes != NO_NODE)).any()):
            raise ValueError(
                f"SidTrie.items_at: nodes must be -1 or nodes of this trie of {self.num_items} "
                f"items (got {int(nodes[~is_node & (nodes != NO_NODE)][0])})"
            )
        begin, end = ending(self.tensors, torch.where(is_node, nodes, 0))
        whole = is_node & (nodes > 0) & (begin < end)
        return torch.where(whole, begin, 0), torch.where(whole, end, 0)

    @_while_reading
    def sids(self, item_ids: Sequence[int | str] | torch.Tensor | None = None) -> torch.Tensor:
        """The SIDs of items: int64 [n, L], -1 pads, on the CPU. None means all, in sorted order.

        Raises:
            KeyError: an id that is not in the catalogue.
        """
        if item_ids is None:
            return trie_rows(self.tensors).cpu()
        return trie_rows(self.tensors, self.item_ids.positions(item_ids).to(self.device)).cpu()

    @_while_reading
    def filter(self, allow: Any = None, deny: Any = None) -> ItemFilter:
        """A filter that restricts a request to some items, exactly: a prefix is legal only if an
        allowed item is below it.

        Args:
            allow, deny: item ids, or a boolean mask [N] over items in sorted SID order
                (`trie.item_ids`). With both, allowed and not denied.

        Raises:
            ValueError: neither is given.
            KeyError: an id that is not in the catalogue.
        """
        return ItemFilter.make(self, allow, deny)

    @_while_reading
    def save(self, path: str | PathLike[str]) -> None:
        """Write the trie to one versioned, checksummed safetensors file, whole or not at all."""
        save_trie(path, self.tensors, self.item_ids)

    @staticmethod
    def metadata(path: str | PathLike[str]) -> dict[str, str]:
        """What a file written by `save` holds ("num_items", "num_levels", "version", ...), read
        without its tensors.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        return read_metadata(path)

    @staticmethod
    def load(path: str | PathLike[str], *, mmap: bool = False) -> SidTrie:
        """Read a trie written by `save`.

        Args:
            path: the file.
            mmap: keep the trie in the file instead of reading it into memory, so that processes
                share it. Then the file must stay as it is: what is copied over it changes this
                trie unchecked, and cutting it off ends the process (SIGBUS). `save` replaces a file
                by renaming, which a mapped trie survives.

        Raises:
            ValueError: the file is damaged, of another version, or inconsistent.
        """
        return SidTrie(*load_trie(path, mmap))

    def __repr__(self) -> str:
        return (
            f"SidTrie(num_items={self.num_items}, num_levels={self.num_levels}, "
            f"num_nodes={self.num_nodes}, nbytes={self.nbytes}, device={self.device})"
        )


def _sid_tensor(sids: Any) -> torch.Tensor:
    """int64 [N, L] on the CPU; rows of unequal length are padded with -1."""
    try:
        tensor = sids if isinstance(sids, torch.Tensor) else _as_tensor(sids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"SidTrie: sids must be integers [N, L] (got {error})") from None
    real = tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex()
    if tensor.ndim != 2 or real or tensor.is_meta or tensor.layout != torch.strided:
        raise ValueError(
            f"SidTrie: sids must be integers [N, L] (got {tensor.dtype} {tuple(tensor.shape)})"
        )
    codes = tensor.to("cpu", torch.int64)
    if tensor.dtype == torch.uint64 and bool((codes < 0).any()):
        raise ValueError("SidTrie: sids must hold codes in [0, 2^31 - 1], -1 pads (got a larger)")
    return codes


def _as_tensor(sids: Any) -> torch.Tensor:
    """Rows of any kind as a tensor, the shorter ones padded with -1."""
    array = sids.to_numpy() if hasattr(sids, "to_numpy") else sids
    if hasattr(array, "dtype") and array.dtype != object:
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            array = array.copy()  # as pandas gives it; torch wants memory that it may write to
        return torch.as_tensor(array, device="cpu")
    rows = _equal_rows(list(array))
    if any(
        isinstance(code, np.generic) for row in rows[:1] if isinstance(row, list) for code in row
    ):
        rows = [[index(code) for code in row] for row in rows]
    return torch.as_tensor(rows, device="cpu")


def _equal_rows(rows: list[Any]) -> list[Any]:
    """Rows as lists, the shorter ones padded with -1; what is no row stays as it is."""
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    width = max((len(row) for row in rows if isinstance(row, Sequence)), default=0)
    return [
        [*row, *[-1] * (width - len(row))]
        if isinstance(row, Sequence) and not isinstance(row, str)
        else row
        for row in rows
    ]


def _padded(sids: torch.Tensor, levels: int) -> torch.Tensor:
    return torch.nn.functional.pad(sids, (0, levels - sids.shape[1]), value=-1)


def check_sid_trie(op: str, trie: Any) -> None:
    """
    Raises:
        ValueError: `trie` is no `SidTrie`.
    """
    if not isinstance(trie, SidTrie):
        raise ValueError(f"{op}: trie must be a SidTrie (got {type(trie).__name__})")
