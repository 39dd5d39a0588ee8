"""The vocabulary of a catalogue whose codes are language-model token ids themselves."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast.ops.host import check_integer

from .vocabulary import Vocabulary


class TokenIds(Vocabulary):
    """Every code, at every level, is the token id itself. Such tokens are words in free text, so
    none of them is kept out of it. Two of the same arguments are equal.

    Args:
        num_levels: levels of a SID, at least 1.
        size: codes are token ids below this, at least 1.
        begin, end, eos: as in `SidVocab`.

    Raises:
        ValueError: `num_levels` or `size` is below 1.
    """

    KIND = "token_ids"

    def __init__(
        self,
        num_levels: int,
        size: int,
        begin: int | None = None,
        end: int | None = None,
        eos: int | None = None,
    ) -> None:
        whose = type(self).__name__
        check_integer(f"{whose}: num_levels", num_levels, -(1 << 31))
        check_integer(f"{whose}: size", size, -(1 << 31))
        if min(num_levels, size) < 1:
            raise ValueError(
                f"{whose}: num_levels and size must be at least 1 (got {num_levels}, {size})"
            )
        self.size = size
        super().__init__([torch.arange(size, device="cpu")] * num_levels, begin, end, eos)

    def code_tokens(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.int64, device="cpu")

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        return torch.arange(self.size, device=device).expand(self.num_levels, -1)

    def decode(self, token_ids: Any) -> torch.Tensor:
        tokens = self._with_levels("decode", "token_ids", token_ids)
        return tokens.masked_fill((tokens < 0) | (tokens >= self.size), -1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.KIND, **dict(self._arguments())}

    def _arguments(self) -> tuple[tuple[str, int | None], ...]:
        names = ("num_levels", "size", "begin", "end", "eos")
        return tuple((name, getattr(self, name)) for name in names)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._arguments() == self._arguments()

    def __hash__(self) -> int:
        return hash(self._arguments())
