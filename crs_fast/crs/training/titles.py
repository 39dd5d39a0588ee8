"""Titles in place of SIDs. A trie takes any token sequences, so that titles need no codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.sequence import GCRS, Layout, SequenceBuilder
from crs_fast.crs.text_tokens import TextTokens
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
    encoded = TextTokens(tokenizer).encode([f" {text}" for text in texts])
    return {item.item_id: tuple(ids[:MAX_TOKENS]) for item, ids in zip(items, encoded, strict=True)}


def title_trie(titles: Mapping[str, Sequence[int]], vocab: Vocabulary) -> SidTrie:
    """A trie of the titles. Each ends in `<EOI>`, so that the score of a title which is the
    beginning of another one includes the probability of ending there."""
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
    """Prepare a backbone to name items by their titles, before training. It gets tokens for modes
    and for the beginning and end of a title, and all titles form the trie.

    Args:
        backbone: model and tokenizer, changed in place.
        items: the catalogue.
        max_length: maximum length of a sequence, context and response together.
        layout: the parts of a response.
        seed: seed of the new tokens' embedding rows, which start at random around the mean of the
            old rows.
    """
    model, tokenizer = backbone
    control = ControlTokens.extend(tokenizer, model)
    titles = title_tokens(items, tokenizer)
    vocab = TitleVocab.extend_for(tokenizer, model, titles)
    init_sid_rows(model, vocab, control, torch.zeros(0, 1), torch.zeros(0, 1), seed=seed)
    builder = SequenceBuilder(tokenizer, vocab, control, titles, max_length, layout)
    trie = title_trie(titles, vocab)
    return Bundle(model, tokenizer, trie, vocab, control, tuple(items), builder, None)
