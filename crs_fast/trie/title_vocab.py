"""A vocabulary for items that are named by their titles: any token may be a code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .sid_vocab import BEGIN, END, SidVocab, add_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
