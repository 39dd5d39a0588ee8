"""The vocabulary of items that are named by their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .sid_vocab import BEGIN, END, add_special_tokens
from .token_ids import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TitleVocab(TokenIds):
    """An item's SID is its title's tokens and `<EOI>`; `<BOI>` opens it in text."""

    KIND = "titles"

    @classmethod
    def extend_for(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None,
        titles: Mapping[str, Sequence[int]],
    ) -> TitleVocab:
        """Add `<BOI>` and `<EOI>` to a tokenizer, and rows for them to a model, in place.

        Args:
            titles: the tokens of each item's title.
        """
        begin, end = add_special_tokens(tokenizer, model, (BEGIN, END))
        levels = max(map(len, titles.values())) + 1
        highest = max(begin, end, *(max(tokens) for tokens in titles.values()))
        return cls(levels, highest + 1, begin, end, tokenizer.eos_token_id)
