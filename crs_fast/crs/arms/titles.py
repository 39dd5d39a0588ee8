"""Items as their titles: the trie takes any token sequences, so titles need no codes at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.dialogue import Item
from crs_fast.trie import SidTrie, SidVocab
from crs_fast.trie.sid_vocab import BEGIN, END, add_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 24


class TitleVocab(SidVocab):
    """Codes are token ids themselves, at every level; `<BOI>` and `<EOI>` frame a title."""

    @classmethod
    def extend_for(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None,
        titles: Mapping[str, Sequence[int]],
    ) -> TitleVocab:
        """Add the frame's tokens to a tokenizer and rows for them to a model, in place."""
        begin, end = add_special_tokens(tokenizer, model, (BEGIN, END))
        levels = max(map(len, titles.values())) + 1
        size = max(begin, end) + 1
        return cls([torch.arange(size)] * levels, begin, end, tokenizer.eos_token_id)

    def code_tokens(self) -> torch.Tensor:
        """None: a title's tokens are words elsewhere."""
        return torch.empty(0, dtype=torch.int64)


def title_tokens(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[int, ...]]:
    """Tokens of every item's title, at most `MAX_TOKENS`; with its year where another item has the
    same title. Items that are still alike share their tokens, and rank in catalogue order."""
    count = Counter(item.title.lower() for item in items)
    texts = [item.display() if count[item.title.lower()] > 1 else item.title for item in items]
    encoded = tokenizer(
        [f" {text}" for text in texts], add_special_tokens=False, split_special_tokens=True
    )
    return {
        item.item_id: tuple(ids[:MAX_TOKENS])
        for item, ids in zip(items, encoded["input_ids"], strict=True)
    }


def title_trie(titles: Mapping[str, Sequence[int]], vocab: SidVocab) -> SidTrie:
    """The titles as a catalogue. Each ends in `<EOI>`, so that a title which begins another pays
    for ending there."""
    rows = [[*tokens, vocab.end] for tokens in titles.values()]
    width = max(map(len, rows))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    return SidTrie.from_sids(padded, list(titles))
