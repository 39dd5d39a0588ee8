"""The vocabulary of items that are named by their titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from crs_fast.ops.host import as_integers

from .sid_vocab import BEGIN, END, add_special_tokens, check_tokenizer
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

        Raises:
            ValueError: no title, a title without tokens, or one that is no list of token ids.
        """
        check_tokenizer("TitleVocab.extend_for", tokenizer, model)
        if not isinstance(titles, Mapping) or not titles:
            raise ValueError(
                "TitleVocab.extend_for: titles must map at least one item to the tokens of its "
                f"title (got {titles!r:.100})"
            )
        for item_id, tokens in titles.items():
            ids = as_integers(f"TitleVocab.extend_for: titles[{item_id!r}]", tokens)
            if ids.ndim != 1 or not ids.numel() or int(ids.min()) < 0:
                raise ValueError(
                    f"TitleVocab.extend_for: titles[{item_id!r}] must be at least one token id "
                    f"(got {tokens!r:.100})"
                )
        begin, end = add_special_tokens(tokenizer, model, (BEGIN, END))
        levels = max(map(len, titles.values())) + 1
        highest = max(begin, end, *(max(tokens) for tokens in titles.values()))
        return cls(levels, highest + 1, begin, end, tokenizer.eos_token_id)
