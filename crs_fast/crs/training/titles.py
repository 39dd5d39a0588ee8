"""Titles in place of SIDs. A trie takes any token sequences, so that titles need no codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.sequence import GCRS, Layout, SequenceBuilder
from crs_fast.crs.title_sids import title_rows, title_tokens
from crs_fast.crs.training.embedding_init import init_sid_rows
from crs_fast.trie import SidTrie, TitleVocab

if TYPE_CHECKING:
    from crs_fast.crs.backbones import Backbone


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
    trie = SidTrie.from_sids(title_rows(titles, vocab), list(titles))
    return Bundle(model, tokenizer, trie, vocab, control, tuple(items), builder, None)
