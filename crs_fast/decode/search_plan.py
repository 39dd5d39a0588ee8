"""A request as the device sees it: tensors, and numbers that don't change while it searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from crs_fast.ops import FilterTensors, TokenTensors, TrieTensors
from crs_fast.ops.trie.checks import remember_tokens

from .search_request import SearchRequest


class LevelTokens(NamedTuple):
    """What one level of the search computes.

    tokens: where the level's codes stand among the logits
    computed int64 [C]: the tokens whose logits are computed; None means the whole vocabulary
    """

    tokens: TokenTensors
    computed: torch.Tensor | None


@dataclass(frozen=True)
class SearchPlan:
    """What `search` needs of a `SearchRequest`.

    trie: the catalogue
    token_of_code int64 [L, C]: the token of each level's codes, -1 where there is none
    levels: one per level of the trie
    highest_token: of the vocabulary
    filters: one bitmap per prompt, or None
    num_beams, normalize, temperature: as in `recommend`
    is_streamed: what "vocab" divides by comes from `LmHead.logsumexp`, not from all logits
    """

    trie: TrieTensors
    token_of_code: torch.Tensor
    levels: Sequence[LevelTokens]
    highest_token: int
    filters: FilterTensors | None
    num_beams: int
    normalize: str
    temperature: float
    is_streamed: bool = False

    @classmethod
    def of(cls, request: SearchRequest, streams: bool = False) -> SearchPlan:
        """`streams`: see `LmHead.streams`."""
        tokens = request.vocabulary.tensors(request.trie.device)
        is_streamed = streams and request.normalize == "vocab"
        if request.normalize == "vocab" and not is_streamed:
            levels = [LevelTokens(tokens, None)] * request.trie.num_levels
        else:
            levels = [_of_level(tokens, level) for level in range(request.trie.num_levels)]
        return cls(
            trie=request.trie.tensors,
            token_of_code=tokens.column,
            levels=levels,
            highest_token=tokens.num_columns - 1,
            filters=request.bitmaps,
            num_beams=request.num_beams,
            normalize=request.normalize,
            temperature=request.temperature,
            is_streamed=is_streamed,
        )


def _of_level(tokens: TokenTensors, level: int) -> LevelTokens:
    """For logits [R, C] of one level's codes alone: code c stands in column c."""
    token_of_code = tokens.column[level]
    codes = torch.arange(token_of_code.numel(), device=token_of_code.device)
    column = torch.where(token_of_code >= 0, codes, -1)
    of_level = tokens._replace(
        # All levels have the same row: only this level's is read.
        column=column.expand(tokens.column.shape[0], -1),
        denied=tokens.denied[:0],
        terminator=-1,
        num_columns=column.numel(),
    )
    remember_tokens(of_level)
    return LevelTokens(of_level, token_of_code.clamp(min=0))
