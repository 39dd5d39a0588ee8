"""Titles as SIDs: the tokens of an item's title, closed by `<EOI>`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.text_tokens import TextTokens
from crs_fast.trie import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 24


def title_tokens(
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    others: Iterable[Item] = (),
) -> dict[str, tuple[int, ...]]:
    """Tokens of every item's title, at most `MAX_TOKENS`; with its year where another item, of
    `items` or `others`, has the same title. Items that are still alike share their tokens, and rank
    in catalogue order."""
    count = Counter(item.title.lower() for item in (*items, *others))
    texts = [item.display() if count[item.title.lower()] > 1 else item.title for item in items]
    encoded = TextTokens(tokenizer).encode([f" {text}" for text in texts])
    return {item.item_id: tuple(ids[:MAX_TOKENS]) for item, ids in zip(items, encoded, strict=True)}


def title_rows(titles: Mapping[str, Sequence[int]], vocab: Vocabulary) -> torch.Tensor:
    """The titles as SIDs int64 [N, L]. Each ends in `<EOI>`, so that the score of a title which is
    the beginning of another one includes the probability of ending there."""
    rows = [[*tokens, vocab.end] for tokens in titles.values()]
    width = max(map(len, rows), default=1)
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)
