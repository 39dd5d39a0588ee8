"""Item ids as tensors: int64, or UTF-8 bytes with offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch


class ItemIds:
    """N distinct ids, all int or all str, frozen.

    Exactly one of the two forms is held: `numbers` int64 [N], or `text` uint8 [bytes] with
    `offsets` int64 [N + 1].
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
            ValueError: ids of neither kind, of mixed kinds, or repeated.
        """
        if isinstance(ids, range):
            ids = torch.arange(ids.start, ids.stop, ids.step)
        if not isinstance(ids, torch.Tensor):
            ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
            kinds = {type(i) for i in ids}
            if kinds == {str}:
                return cls._from_text(ids)
            if not kinds <= {int}:
                names = sorted(kind.__name__ for kind in kinds)
                raise ValueError(f"SidTrie: item_ids must be all int or all str (got {names})")
        numbers = torch.as_tensor(ids, dtype=torch.int64).reshape(-1).cpu()
        if numbers.unique().numel() != numbers.numel():
            raise ValueError("SidTrie: item_ids must be distinct (got repeated ids)")
        return cls(numbers=numbers)

    @classmethod
    def _from_text(cls, ids: Sequence[str]) -> ItemIds:
        if len(set(ids)) != len(ids):
            raise ValueError("SidTrie: item_ids must be distinct (got repeated ids)")
        encoded = [i.encode() for i in ids]
        offsets = torch.tensor([0, *map(len, encoded)], dtype=torch.int64).cumsum(0)
        text = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        return cls(text=text[: int(offsets[-1])].clone(), offsets=offsets)

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
        return [bytes(self.text[a:b].tolist()).decode() for a, b in pairwise(bounds)]

    def tolist(self) -> list[int | str]:
        return self[:]

    @property
    def nbytes(self) -> int:
        held = (self.numbers, self.text, self.offsets)
        return sum(t.nbytes for t in held if t is not None)

    def take(self, order: torch.Tensor) -> ItemIds:
        """The ids at positions `order` int64 [n]."""
        if self.numbers is not None:
            return ItemIds(numbers=self.numbers[order])
        assert self.text is not None
        assert self.offsets is not None
        lengths = (self.offsets[1:] - self.offsets[:-1])[order]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        start = torch.repeat_interleave(self.offsets[:-1][order] - offsets[:-1], lengths)
        return ItemIds(text=self.text[start + torch.arange(start.numel())], offsets=offsets)

    def positions(self, ids: Iterable[int | str] | torch.Tensor) -> torch.Tensor:
        """Where ids stand: int64 [n].

        Raises:
            KeyError: an id that is not here.
        """
        if self.numbers is None:
            wanted = list(ids)
            missing = [i for i in wanted if i not in self._of_text]
            if missing:
                raise KeyError(f"SidTrie: no item {missing[0]!r} ({len(missing)} unknown ids)")
            return torch.tensor([self._of_text[str(i)] for i in wanted], dtype=torch.int64)
        try:
            wanted_numbers = torch.as_tensor(
                ids if isinstance(ids, torch.Tensor) else list(ids), dtype=torch.int64
            ).reshape(-1)
        except (TypeError, ValueError) as error:
            raise KeyError(f"SidTrie: this catalogue's item ids are int ({error})") from None
        sorted_ids, order = self._sorted_numbers
        if not sorted_ids.numel():
            if wanted_numbers.numel():
                raise KeyError(f"SidTrie: no item {int(wanted_numbers[0])} (empty catalogue)")
            return wanted_numbers
        at = torch.searchsorted(sorted_ids, wanted_numbers).clamp(max=sorted_ids.numel() - 1)
        unknown = wanted_numbers[sorted_ids[at] != wanted_numbers]
        if unknown.numel():
            raise KeyError(f"SidTrie: no item {int(unknown[0])} ({unknown.numel()} unknown ids)")
        return order[at]

    @cached_property
    def _sorted_numbers(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.numbers is not None
        return self.numbers.sort()

    @cached_property
    def _of_text(self) -> dict[str, int]:
        return {str(item): position for position, item in enumerate(self.tolist())}
