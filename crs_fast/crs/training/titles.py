"""Items as their titles: the trie takes any token sequences, so titles need no codes at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.sequence import GCRS, Layout, SequenceBuilder
from crs_fast.crs.training.embedding_init import init_sid_rows
from crs_fast.trie import SidTrie, TitleVocab, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from crs_fast.crs.backbones import Backbone

MAX_TOKENS = 24


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


def title_trie(titles: Mapping[str, Sequence[int]], vocab: Vocabulary) -> SidTrie:
    """The titles as a catalogue. Each ends in `<EOI>`, so that a title which begins another pays
    for ending there."""
    rows = [[*tokens, vocab.end] for tokens in titles.values()]
    width = max(map(len, rows))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    return SidTrie.from_sids(padded, list(titles))


def with_titles(
    backbone: Backbone,
    items: Sequence[Item],
    *,
    max_length: int = 768,
    layout: Layout = GCRS,
    seed: int = 0,
) -> Bundle:
    """A backbone that names items by their titles, not yet trained: tokens for modes and for where
    a title begins and ends join it, in place, and every title goes into the trie.

    Args:
        backbone: model and tokenizer, changed in place.
        items: the catalogue.
        max_length: of a sequence, context and response together.
        layout: the parts of a response.
        seed: of the new tokens' embedding rows, which start at random around the old ones' mean.
    """
    model, tokenizer = backbone
    control = ControlTokens.extend(tokenizer, model)
    titles = title_tokens(items, tokenizer)
    vocab = TitleVocab.extend_for(tokenizer, model, titles)
    init_sid_rows(model, vocab, control, torch.zeros(0, 1), torch.zeros(0, 1), seed=seed)
    builder = SequenceBuilder(tokenizer, vocab, control, titles, max_length, layout)
    trie = title_trie(titles, vocab)
    return Bundle(model, tokenizer, trie, vocab, control, tuple(items), builder, None)
