"""Beams of beam sampling that were drawn at no probability, and whether they may be skipped."""

from __future__ import annotations

import torch

from crs_fast.trie import Grammar

# Of a row's log-probs, whose logsumexp is 0, or less after penalties.
_ROUNDING = 1e-2
# So many tokens of a row at least are left by Hugging Face's top_k, top_p and the like in beam
# sampling.
_KEPT = 2


def dead_beams(
    grammar: Grammar, input_ids: torch.Tensor, scores: torch.Tensor, illegal: torch.Tensor
) -> torch.Tensor:
    """Rows of `illegal` bool [R] that beam sampling has drawn at no probability. What a caller
    did wrong looks alike, except that then no beam of the request is legal. So such a row must
    hold log-probs, as in beam search, and share all that stands before its SID with a row
    that is legal."""
    start = grammar.starts(input_ids)  # [R]
    is_beam = illegal & (scores.float().logsumexp(1) <= _ROUNDING)
    dead = torch.zeros_like(illegal)
    for row in is_beam.nonzero().flatten().tolist():
        before = int(start[row])
        siblings = _siblings(input_ids, row, before)
        dead[row] = bool((siblings & ~illegal & (start == before)).any())
    return dead


def check_live_beams(
    grammar: Grammar, input_ids: torch.Tensor, masked: torch.Tensor, dead: torch.Tensor
) -> None:
    """
    Raises:
        ValueError: a dead beam would be returned, because its SID has all its tokens, or might
            be, because its siblings may not have enough last codes for all.
    """
    start, levels = grammar.starts(input_ids), grammar.trie.num_levels
    legal = (masked > -torch.inf).sum(1).clamp(max=_KEPT)  # [R]
    for row in dead.nonzero().flatten().tolist():
        before = int(start[row])
        written = input_ids.shape[1] - before
        if written < levels - 1:
            continue
        siblings = _siblings(input_ids, row, before)
        live = (siblings & ~dead).nonzero().flatten()
        # Beams of the same tokens have their probability once.
        number = input_ids[live].unique(dim=0, return_inverse=True)[1]
        kept = legal.new_zeros(live.numel()).index_copy(0, number, legal[live])
        if written == levels - 1 and int(kept.sum()) >= int(siblings.sum()):
            continue
        raise ValueError(
            "SidLogitsProcessor: beam sampling must draw a continuation for each beam (got "
            f"{int((siblings & dead).sum())} dead beams of {int(siblings.sum())}, row {row} "
            "the first). Use fewer beams, a higher top_k and top_p, do_sample=False, or "
            "custom_generate=crs_fast.beam_search, which marks beams that are none"
        )


def _siblings(input_ids: torch.Tensor, row: int, before: int) -> torch.Tensor:
    """Rows that share the first `before` tokens of this row, bool [R]."""
    return (input_ids[:, :before] == input_ids[row, :before]).all(1)
