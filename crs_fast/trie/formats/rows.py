"""What every kind of index file holds once it is read, and how its errors are worded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .naming import LevelNames

# A level's table of tokens has one entry per code up to the highest.
MOST_CODES = 1 << 22


class Rows(NamedTuple):
    """The items of an index file, in its order.

    sids: int64 [N, L], -1 pads
    item_ids: N ids; None means 0 .. N - 1
    names: how the tokens of each level are called; None where the file doesn't say
    codes_are_tokens: whether codes are language-model token ids themselves
    """

    sids: torch.Tensor
    item_ids: Sequence[int | str] | torch.Tensor | None = None
    names: list[LevelNames] | None = None
    codes_are_tokens: bool = False


def broken(path: Path, problem: str, op: str = "load_index") -> ValueError:
    return ValueError(f"{op}: {path} {problem}")


def sid_rows(path: Path, codes: Sequence[Sequence[int]], item_ids: Sequence[Any]) -> torch.Tensor:
    """int64 [N, L] of each item's codes, -1 pads.

    Raises:
        ValueError: no item, one without codes, or a code that is too high.
    """
    if not codes:
        raise broken(path, "must hold at least one item (got none)")
    levels = max(map(len, codes))
    if min(map(len, codes)) == 0:
        empty = next(item for item, row in zip(item_ids, codes, strict=True) if not row)
        raise broken(path, f"must give every item a SID (item {empty!r} has an empty one)")
    highest = max(map(max, codes))
    if highest >= 1 << 31 or min(map(min, codes)) < 0:
        raise broken(path, f"must hold codes from 0 to 2^31 - 1 (got {highest} as the highest)")
    if all(len(row) == levels for row in codes):
        return torch.tensor(codes, dtype=torch.int64, device="cpu")
    return torch.tensor(
        [[*row, *[-1] * (levels - len(row))] for row in codes], dtype=torch.int64, device="cpu"
    )


def item_number_or_text(texts: Sequence[str]) -> list[int] | list[str]:
    """Ids as ints where every text is the plain decimal form of one, else as they are."""
    if all(text.isdecimal() and (text == "0" or text[0] != "0") for text in texts):
        return [int(text) for text in texts]
    return list(texts)


def check_distinct(path: Path, item_ids: Sequence[Any]) -> None:
    """
    Raises:
        ValueError: an id that stands there twice.
    """
    if len(set(item_ids)) == len(item_ids):
        return
    seen = set()
    for item in item_ids:
        if item in seen:
            raise broken(path, f"must name every item once (got item {item!r} twice)")
        seen.add(item)
