"""Where rows of tokens stand in text that holds semantic IDs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from crs_fast.ops import trie_walk

from .sid_trie import SidTrie
from .vocabulary import Vocabulary

# A token that is no code of its level. Unlike -1, at which a walk stops, no edge carries it.
_NO_CODE = -2


class Standing(NamedTuple):
    """Where rows of tokens stand.

    nodes int64 [R]: -1 in free text, and inside a SID whose tokens are no prefix in the catalogue
    inside bool [R]: whether a SID has begun that is not closed
    """

    nodes: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True)
class Grammar:
    """How semantic IDs (SIDs) stand in rows of tokens. A row is in one of three states, which its
    latest SID decides:

        outside   no SID has begun, or text goes on after the one that was closed
        inside    a SID has begun: the row stands at the trie node that its codes lead to
        closed    the terminator has closed it and nothing else may follow, as at any leaf

    trie: the catalogue, on the device of the rows
    vocab: which token stands for which code
    prompt_length: where the first SID begins in every row; None means only `begin` opens one
    begin: the token that opens a SID from there on, or None
    terminator: the token that closes a SID; -1 where none does
    text_follows: whether a closed SID leaves the row outside, or closed
    """

    trie: SidTrie
    vocab: Vocabulary
    prompt_length: int | None
    begin: int | None
    terminator: int
    text_follows: bool

    def read(self, input_ids: torch.Tensor) -> Standing:
        """Where each row of `input_ids`, int64 [R, T], stands."""
        levels = self.trie.num_levels
        start = self.starts(input_ids)  # [R]
        begun = start >= 0
        at = start.clamp(min=0)[:, None] + torch.arange(levels + 1, device=start.device)
        written = at < input_ids.shape[1]
        window = input_ids.gather(1, at.clamp(max=input_ids.shape[1] - 1))  # [R, L + 1]
        closing = written & (window == self.terminator)
        closed = closing.any(1)
        codes = self.vocab.decode(window[:, :levels])
        codes = codes.masked_fill(codes < 0, _NO_CODE)
        # Tokens from the closing one on are not part of the SID.
        ended = ~written[:, :levels] | (closing.cumsum(1)[:, :levels] > 0)
        nodes = trie_walk(self.trie.tensors, codes.masked_fill(ended, -1))
        nodes = nodes.masked_fill(written[:, levels] & ~closed, -1)
        nodes = nodes.masked_fill(closed, -1 if self.text_follows else self.trie.leaf)
        return Standing(nodes.masked_fill(~begun, -1), begun & ~closed)

    def starts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position of the first code of each row's latest SID, -1 where there is none."""
        first = -1 if self.prompt_length is None else self.prompt_length
        if self.begin is None:
            return input_ids.new_full((input_ids.shape[0],), first)
        # What the prompt holds before its end opens nothing that `first` does not.
        position = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        return torch.where(input_ids == self.begin, position, first).amax(1).clamp(min=first)
