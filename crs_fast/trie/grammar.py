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

    def read(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor | None = None,
        prompt_lengths: torch.Tensor | None = None,
    ) -> Standing:
        """Where each row of `input_ids`, int64 [R, T], stands.

        Args:
            lengths: tokens of each row, int64 [R]; what follows them is not read. None means T.
            prompt_lengths: where the first SID begins in each row, int64 [R], in place of
                `prompt_length`.
        """
        levels = self.trie.num_levels
        start = self.starts(input_ids, lengths, prompt_lengths)  # [R]
        begun = start >= 0
        at = start.clamp(min=0)[:, None] + torch.arange(levels + 1, device=start.device)
        written = at < (input_ids.shape[1] if lengths is None else lengths[:, None])
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

    def starts(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor | None = None,
        prompt_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Position of the first code of each row's latest SID, -1 where there is none."""
        first = prompt_lengths
        if first is None:
            position = -1 if self.prompt_length is None else self.prompt_length
            first = input_ids.new_full((input_ids.shape[0],), position)
        if self.begin is None:
            return first
        length = input_ids.shape[1]
        if input_ids.is_cuda or length <= 4 * self.trie.num_levels:
            return _after_last(self.begin, input_ids, lengths).maximum(first)
        # A row inside a SID has opened it among its last tokens. Only the others are read whole,
        # which takes long after a long prompt.
        recent = torch.arange(-self.trie.num_levels - 2, 0, device=input_ids.device)
        at = (recent + (length if lengths is None else lengths[:, None])).expand(len(first), -1)
        opens = (input_ids.gather(1, at.clamp(min=0)) == self.begin) & (at >= 0)
        last = torch.where(opens, at + 1, -1).amax(1)
        rows = (last < 0).nonzero()[:, 0]
        if rows.numel():
            row_lengths = None if lengths is None else lengths[rows]
            last[rows] = _after_last(self.begin, input_ids[rows], row_lengths)
        # What the prompt holds before its end opens nothing that `first` does not.
        return last.maximum(first)


def _after_last(
    token: int, input_ids: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """The position after the last `token` of each row, -1 where it has none."""
    position = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    is_token = input_ids == token
    if lengths is not None:
        is_token = is_token & (position <= lengths[:, None])
    return torch.where(is_token, position, -1).amax(1)
