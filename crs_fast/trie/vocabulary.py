"""The interface between semantic-ID codes and language-model tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import index
from typing import Any, TypeVar

import torch

from crs_fast.ops import TokenTensors, token_tensors
from crs_fast.ops.host import as_integers

T = TypeVar("T")


def _token(whose: str, name: str, value: Any) -> int | None:
    """A token id of a caller's.

    Raises:
        ValueError: it is no integer from 0 on.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < 1 << 31:
        raise ValueError(f"{whose}: {name} must be a token id, 0 .. 2^31 - 1 (got {value!r})")
    return index(value)


class Vocabulary(ABC):
    """Which language-model token stands for which code of a semantic ID (SID), and which tokens
    frame a SID in text. Frozen, so threads may share it.

    token_ids: the tokens of each level, int64 [C] on the CPU; `token_ids[l][c]` is the token of
        code c at level l, -1 where none stands for it
    begin: the token that opens a SID in text (`<BOI>`), or None
    end: the token that closes a SID, after which text goes on (`<EOI>`), or None
    eos: the end-of-sequence token, which follows a whole SID where `end` is None, or None
    """

    def __init__(
        self,
        token_ids: Sequence[torch.Tensor],
        begin: int | None = None,
        end: int | None = None,
        eos: int | None = None,
    ) -> None:
        self.token_ids = list(token_ids)
        whose = type(self).__name__
        self.begin = _token(whose, "begin", begin)
        self.end = _token(whose, "end", end)
        self.eos = _token(whose, "eos", eos)
        self._remembered: dict[Any, Any] = {}

    @property
    def num_levels(self) -> int:
        return len(self.token_ids)

    @property
    def sizes(self) -> list[int]:
        """The number of codes of each level."""
        return [ids.numel() for ids in self.token_ids]

    @abstractmethod
    def code_tokens(self) -> torch.Tensor:
        """Every token that stands for a code and for nothing else, so that free text must not hold
        it; sorted, without repeats, int64 [n]."""

    @abstractmethod
    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """`table[l, c]` is the token of code c at level l, -1 past a level's end; int64 [L, C]."""

    @abstractmethod
    def decode(self, token_ids: Any) -> torch.Tensor:
        """Token ids int [..., L'] to codes int64 [..., L']; -1 where a token is no code of its
        level.

        Raises:
            ValueError: more levels than the vocabulary has.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, which `vocabulary_from_dict` reads."""

    def encode(self, sids: Any) -> torch.Tensor:
        """Codes int [..., L'] to token ids int64 [..., L']; -1 stays -1.

        Raises:
            ValueError: more levels than the vocabulary has, a code outside its level, or one that
                no token stands for.
        """
        sids = self._with_levels("encode", "sids", sids)
        for level, size in enumerate(self.sizes[: sids.shape[-1]]):
            codes = sids[..., level]
            if codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < size:
                raise ValueError(
                    f"{type(self).__name__}.encode: codes of level {level} must lie in "
                    f"[-1, {size}) (got [{int(codes.min())}, {int(codes.max())}])"
                )
        levels = torch.arange(sids.shape[-1], device=sids.device)
        tokens = self.tensors(sids.device).column[levels, sids.clamp(min=0)]
        tokens = tokens.masked_fill(sids < 0, -1)
        without = (tokens < 0) & (sids >= 0)
        if self.has_gaps and bool(without.any()):
            raise ValueError(
                f"{type(self).__name__}.encode: every code must have a token "
                f"(got code {int(sids[without][0])}, which has none)"
            )
        return tokens

    @cached_property
    def has_gaps(self) -> bool:
        """Whether some codes have no token."""
        return any(bool((ids < 0).any()) for ids in self.token_ids)

    def codes_without_token(self, level_codes: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        """Those of a catalogue's codes that no token stands for, as (level, code).

        Args:
            level_codes: the codes of each level of the catalogue, int64 [n], all below `sizes`.
        """
        if not self.has_gaps:
            return []
        return [
            (level, code)
            for level, (ids, codes) in enumerate(zip(self.token_ids, level_codes, strict=False))
            for code in codes[ids[codes] < 0].tolist()
        ]

    def _with_levels(self, method: str, name: str, values: Any) -> torch.Tensor:
        """int64 [..., L'] with at most the vocabulary's levels."""
        values = as_integers(f"{type(self).__name__}.{method}: {name}", values).long()
        if values.ndim == 0 or values.shape[-1] > self.num_levels:
            raise ValueError(
                f"{type(self).__name__}.{method}: {name} must have at most {self.num_levels} "
                f"levels in the last dimension (got shape {tuple(values.shape)})"
            )
        return values

    @property
    def text_follows(self) -> bool:
        """Whether free text goes on after a whole SID, or nothing does."""
        return self.end is not None

    def terminator(self, eos_token_id: int | None = None) -> int:
        """The token that must follow a whole SID: `end`, else `eos_token_id`, else `eos`; -1 where
        there is none."""
        choices = (self.end, _token(type(self).__name__, "eos_token_id", eos_token_id), self.eos)
        return next((token for token in choices if token is not None), -1)

    def unused_token(self, level_codes: Sequence[torch.Tensor]) -> int:
        """The lowest token that stands for no code of a catalogue.

        Args:
            level_codes: the codes of each level of the catalogue, int64 [n].
        """
        taken = set(self.code_tokens().tolist())
        for ids, codes in zip(self.token_ids, level_codes, strict=False):
            taken.update(ids[codes.cpu()].tolist())
        return next(token for token in range(len(taken) + 1) if token not in taken)

    def tensors(
        self, device: torch.device | str = "cpu", eos_token_id: int | None = None
    ) -> TokenTensors:
        """What the trie ops need, on a device. Made once for each device and terminator.

        Args:
            eos_token_id: as in `terminator`.
        """
        key = torch.device(device), self.terminator(eos_token_id)
        return self.remembered(key, lambda: self._token_tensors(*key))

    def remembered(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gave for a key the first time."""
        if key not in self._remembered:
            with torch.inference_mode(False):  # else only inference code could use its tensors
                made = make()
            # Where two threads meet, both take what the first one made.
            self._remembered.setdefault(key, made)
        first: T = self._remembered[key]
        return first

    def _token_tensors(self, device: torch.device, terminator: int) -> TokenTensors:
        denied = self.code_tokens()
        if self.end is not None:
            denied = torch.cat([denied, denied.new_tensor([self.end])])
        return token_tensors(self.table(device), terminator, denied, device)

    def __repr__(self) -> str:
        frame = f"begin={self.begin}, end={self.end}, eos={self.eos}"
        return f"{type(self).__name__}(sizes={self.sizes}, {frame})"
