"""Item ids as tensors: int64, or UTF-8 bytes with offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from crs_fast.ops import number_find, splice, text_find, text_table

# Texts that are copied in one go.
_BLOCK = 1 << 18


class ItemIds:
    """N distinct ids, all int or all str, frozen.

    They are either `numbers`, int32 or int64 [N], or `text`, uint8 [bytes], with `offsets`, int64
    [N + 1]: id i is the UTF-8 text from `offsets[i]` to `offsets[i + 1]`.
    """

    def __init__(
        self,
        numbers: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> None:
        self.numbers, self.text, self.offsets = numbers, text, offsets

    @classmethod
    def make(cls, ids: Any) -> ItemIds:
        """From ints (any integer tensor, array, range or list) or strs.

        Raises:
            ValueError: ids of neither kind, of mixed kinds, repeated, ints outside int64, or text
                that UTF-8 can't hold.
        """
        if isinstance(ids, range):
            ids = torch.arange(ids.start, ids.stop, ids.step, device="cpu")
        if not isinstance(ids, torch.Tensor):
            ids = _plain_list(ids)
            kinds = {type(i) for i in ids}
            if kinds == {str}:
                return cls._from_text(ids)
            if not kinds <= {int}:
                names = sorted(kind.__name__ for kind in kinds)
                raise ValueError(f"SidTrie: item_ids must be all int or all str (got {names})")
        numbers = _narrow(_integers(ids))
        ordered = np.sort(numbers.numpy())  # in half of the memory that torch's sort takes
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError("SidTrie: item_ids must be distinct (got repeated ids)")
        return cls(numbers=numbers)

    @classmethod
    def _from_text(cls, ids: Sequence[str]) -> ItemIds:
        made = cls(None, *_encoded(ids))
        if made._table[1] >= 0:
            raise ValueError("SidTrie: item_ids must be distinct (got repeated ids)")
        return made

    def __len__(self) -> int:
        if self.numbers is not None:
            return self.numbers.numel()
        assert self.offsets is not None
        return self.offsets.numel() - 1

    def __getitem__(self, span: slice) -> list[int | str]:
        """The ids of a range of positions."""
        if self.numbers is not None:
            return self.numbers[span].tolist()
        assert self.text is not None
        assert self.offsets is not None
        start, stop, _ = span.indices(len(self))
        bounds = self.offsets[start : stop + 1].tolist()
        first = bounds[0]
        whole = self.text[first : bounds[-1]].numpy().tobytes()
        return [whole[a - first : b - first].decode() for a, b in pairwise(bounds)]

    def tolist(self) -> list[int | str]:
        return self[:]

    def same_as(self, other: ItemIds) -> bool:
        """Whether both hold the same ids in the same order."""
        if self is other:
            return True
        pairs = (
            (self.numbers, other.numbers),
            (self.text, other.text),
            (self.offsets, other.offsets),
        )
        return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, the look-up table of int ids included; that of text is not."""
        tensors = (self.numbers, self.text, self.offsets, self._order)
        return sum(t.nbytes for t in tensors if t is not None)

    def take(self, order: torch.Tensor) -> ItemIds:
        """The ids at positions `order`, int32 or int64 [n]."""
        if self.numbers is not None:
            return ItemIds(numbers=self.numbers.index_select(0, order))
        assert self.text is not None
        assert self.offsets is not None
        lengths = self.offsets.diff().index_select(0, order)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        text = self.text.new_empty(int(offsets[-1]))
        for first in range(0, order.numel(), _BLOCK):  # a position per byte takes memory
            last = min(first + _BLOCK, order.numel())
            part = text[int(offsets[first]) : int(offsets[last])]
            start = self.offsets.index_select(0, order[first:last]) - offsets[first:last]
            start = torch.repeat_interleave(start + offsets[first], lengths[first:last])
            part.copy_(self.text[start.add_(torch.arange(part.numel(), device="cpu"))])
        return ItemIds(text=text, offsets=offsets)

    def positions(
        self, ids: Iterable[int | str] | torch.Tensor, once: bool = False
    ) -> torch.Tensor:
        """The positions of some ids: int64 [n].

        Args:
            once: pass over all ids instead of making a look-up table, which takes longer and makes
                later calls quicker.

        Raises:
            KeyError: an id that is not here.
        """
        if self.numbers is None:
            return self._text_positions(ids, once)
        try:
            listed = ids if isinstance(ids, torch.Tensor) else _plain_list(ids)
            if isinstance(listed, list):
                odd = [i for i in listed if type(i) is not int]
                if odd:
                    raise TypeError(f"got {odd[0]!r}")
            wanted_numbers = _integers(listed)
        except (TypeError, ValueError, RuntimeError) as error:
            raise KeyError(f"SidTrie: this catalogue's item ids are int ({error})") from None
        if not len(self):
            if wanted_numbers.numel():
                raise KeyError(f"SidTrie: no item {int(wanted_numbers[0])} (empty catalogue)")
            return wanted_numbers
        find = self._find_numbers_once if once else self._find_numbers
        positions = find(wanted_numbers)
        unknown = wanted_numbers[positions < 0]
        if unknown.numel():
            raise KeyError(f"SidTrie: no item {int(unknown[0])} ({unknown.numel()} unknown ids)")
        return positions

    def _text_positions(self, ids: Iterable[int | str] | torch.Tensor, once: bool) -> torch.Tensor:
        wanted = _plain_list(ids)
        places = [place for place, one in enumerate(wanted) if isinstance(one, str)]
        positions = torch.full((len(wanted),), -1, dtype=torch.int64, device="cpu")
        find = self._find_texts_once if once else self._find_texts
        positions[places] = find(*_encoded([wanted[place] for place in places], lenient=True))
        unknown = (positions < 0).nonzero().squeeze(1).tolist()
        if unknown:
            raise KeyError(f"SidTrie: no item {wanted[unknown[0]]!r} ({len(unknown)} unknown ids)")
        return positions

    def _find_texts(self, text: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The positions of texts, int64 [n]; -1 for one that is not here."""
        assert self.text is not None
        assert self.offsets is not None
        return text_find(self.text, self.offsets, self._table[0], text, offsets)

    def _find_texts_once(self, text: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        if "_table" in vars(self):
            return self._find_texts(text, offsets)
        assert self.text is not None
        assert self.offsets is not None
        table, repeated = text_table(text, offsets)
        found = text_find(text, offsets, table, self.text, self.offsets)  # [N]: which of the n
        here = (found >= 0).nonzero().squeeze(1)
        positions = torch.full((offsets.numel() - 1,), -1, dtype=torch.int64, device="cpu")
        positions[found[here]] = here
        if repeated >= 0:  # only the first of equal texts is in the table
            positions = positions[text_find(text, offsets, table, text, offsets)]
        return positions

    def _find_numbers(self, wanted: torch.Tensor) -> torch.Tensor:
        """The positions of numbers, int64 [n]; -1 for one that is not here."""
        assert self.numbers is not None
        positions = self._search(wanted)
        return torch.where(self.numbers[positions] == wanted, positions, -1)

    def _find_numbers_once(self, wanted: torch.Tensor) -> torch.Tensor:
        assert self.numbers is not None
        return number_find(self.numbers, wanted)

    def _search(self, wanted: torch.Tensor) -> torch.Tensor:
        """For each wanted number, the position of that id, or of another where it is missing."""
        assert self.numbers is not None
        last = len(self) - 1
        least = int(self.numbers[self._order[0]])
        if int(self.numbers[self._order[-1]]) - least == last:  # ids without a gap
            return self._order[(wanted - least).clamp(0, last)].long()
        ordered = self.numbers[self._order.long()]
        return self._order[torch.searchsorted(ordered, wanted).clamp(max=last)].long()

    def as_text(self) -> ItemIds:
        """The ids as text, in their order."""
        return self if self.numbers is None else ItemIds.make(list(map(str, self.tolist())))

    def check_new(self, more: ItemIds) -> None:
        """
        Raises:
            ValueError: ids of the other kind, or one that is here already.
        """
        if not len(self) or not len(more):
            return
        if (self.numbers is None) != (more.numbers is None):
            kind = "str" if self.numbers is None else "int"
            raise ValueError(f"SidTrie: item_ids must be {kind}, as the catalogue's (got others)")
        if more.numbers is not None:
            positions = self._find_numbers_once(more.numbers.long())
        else:
            assert more.text is not None
            assert more.offsets is not None
            positions = self._find_texts_once(more.text, more.offsets)
        known = (positions >= 0).nonzero().squeeze(1)
        if not known.numel():
            return
        repeated = more[int(known[0]) : int(known[0]) + 1]
        if more.numbers is None:
            repeated = [min(str(more[place : place + 1][0]) for place in known.tolist())]
        raise ValueError(f"SidTrie: item {repeated[0]!r} must be new (got one of this id)")

    def insert(self, at: torch.Tensor, more: ItemIds) -> ItemIds:
        """These ids and `more`, which are of this kind and new: id j of `more` stands behind at[j]
        of these.

        Args:
            at: int64 [n], ascending.
        """
        if not len(self) or not len(more):
            return self if len(self) else more
        each = torch.arange(len(more) + 1, device="cpu")
        if self.numbers is not None:
            assert more.numbers is not None
            dtype = torch.promote_types(self.numbers.dtype, more.numbers.dtype)
            numbers, added = self.numbers.to(dtype), more.numbers.to(dtype)
            return ItemIds(numbers=_narrow(splice(numbers, at, at, added, each)))
        assert self.text is not None
        assert more.text is not None
        assert self.offsets is not None
        assert more.offsets is not None
        start = self.offsets[at]
        text = splice(self.text, start, start, more.text, more.offsets)
        added = start + more.offsets[:-1]
        return ItemIds(None, text, splice(self.offsets, at, at, added, each, more.offsets))

    def without(self, at: torch.Tensor) -> ItemIds:
        """The ids but for those at positions `at` int64 [n], which are distinct and ascend."""
        none = torch.zeros(at.numel() + 1, dtype=torch.int64, device="cpu")
        if self.numbers is not None:
            return ItemIds(
                numbers=_narrow(splice(self.numbers, at, at + 1, self.numbers[:0], none))
            )
        assert self.text is not None
        assert self.offsets is not None
        start, end = self.offsets[at], self.offsets[at + 1]
        removed = torch.cat([none[:1], (end - start).cumsum(0)])
        return ItemIds(
            text=splice(self.text, start, end, self.text[:0], none),
            offsets=splice(self.offsets, at, at + 1, self.offsets[:0], none, -removed),
        )

    @cached_property
    def _order(self) -> torch.Tensor:
        """The positions sorted by their ids, int32 [N]; empty for text."""
        if self.numbers is None:
            return torch.empty(0, dtype=torch.int32, device="cpu")
        size = len(self)
        if size and int(self.numbers.min()) == 0 and int(self.numbers.max()) == size - 1:
            # Distinct, so a permutation: inverted without a sort.
            order = torch.full((size,), -1, dtype=torch.int32, device="cpu")
            order[self.numbers.long()] = torch.arange(size, dtype=torch.int32, device="cpu")
            if int(order.min()) >= 0:
                return order
        return self.numbers.argsort().to(torch.int32)

    @cached_property
    def _table(self) -> tuple[torch.Tensor, int]:
        """What finds ids that are text, and the position of one that stands before it too, or
        -1."""
        assert self.text is not None
        assert self.offsets is not None
        return text_table(self.text, self.offsets)


def _plain_list(ids: Any) -> list[Any]:
    """Ids as Python's own ints and strs where they are numpy's, or tensors of one number each;
    whatever else stands among them stays as it is."""
    if isinstance(ids, str | bytes):
        raise ValueError(f"SidTrie: item_ids must be a list of ids (got {ids!r})")
    try:
        listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    except TypeError as error:
        raise ValueError(f"SidTrie: item_ids must be a list of ids (got {error})") from None
    if not isinstance(listed, list):
        raise ValueError(f"SidTrie: item_ids must be a list of ids (got {listed!r})")
    return listed if {type(i) for i in listed} <= {int, str} else [_plain(i) for i in listed]


def _plain(one: Any) -> Any:
    if isinstance(one, str):
        return str(one)
    if isinstance(one, np.generic) or (isinstance(one, torch.Tensor) and one.ndim == 0):
        return one.item()
    return one


def _encoded(ids: Sequence[str], lenient: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """UTF-8 bytes and their offsets. `lenient` encodes what UTF-8 can't hold too, to
    look for what can't be found.

    Raises:
        ValueError: text that UTF-8 can't hold.
    """
    try:
        encoded = [i.encode(errors="surrogatepass" if lenient else "strict") for i in ids]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"SidTrie: item_ids must be text that UTF-8 can hold (got {error.object!r})"
        ) from None
    offsets = torch.tensor([0, *map(len, encoded)], dtype=torch.int64, device="cpu").cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
    return text[: int(offsets[-1])].clone(), offsets


def _integers(ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """int64 [n] on the CPU, from integers only."""
    if isinstance(ids, torch.Tensor):
        numbers = ids
    else:
        for end in (min(ids), max(ids)) if ids else ():
            if not -(2**63) <= end < 2**63:
                raise ValueError(f"SidTrie: item_ids must be in [-2^63, 2^63) (got {end})")
        dtype = None if ids else torch.int64
        numbers = torch.as_tensor(ids, dtype=dtype, device="cpu")
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(f"SidTrie: item_ids must be int or str (got {numbers.dtype})")
    whole = numbers.to("cpu", torch.int64).reshape(-1)
    if numbers.dtype == torch.uint64 and bool((whole < 0).any()):
        raise ValueError("SidTrie: item_ids must be in [-2^63, 2^63) (got a larger uint64)")
    return whole


def _narrow(numbers: torch.Tensor) -> torch.Tensor:
    """As int32, half the bytes, where the values allow it."""
    if numbers.dtype == torch.int32:
        return numbers
    limits = torch.iinfo(torch.int32)
    fits = numbers.numel() == 0 or bool(
        (numbers.min() >= limits.min) & (numbers.max() <= limits.max)
    )
    return numbers.to(torch.int32) if fits else numbers
