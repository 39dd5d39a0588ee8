"""Trie ops in PyTorch calls around the kernels, where a gradient must flow."""

from __future__ import annotations

import torch

from .tensors import END, NO_NODE, FilterTensors, TokenTensors, TrieTensors


def trie_logprob(
    logits: torch.Tensor,
    sids: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    temperature: float,
    filters: FilterTensors | None,
) -> torch.Tensor:
    """See `crs_fast.ops.trie.trie_logprob`; everything is checked."""
    rows, levels, _ = logits.shape
    words, rank = filters if filters is not None else (None, None)
    # After a leaf nothing follows: the terminator is no level. torch 2.8 can't trace `_replace`.
    tokens = TokenTensors(tokens.column, tokens.denied, -1, tokens.num_columns)
    goes_on = torch.ones_like(sids[:, 0], dtype=torch.bool)
    out = []
    for level in range(levels):
        code = sids[:, level]
        node = torch.ops.crs_fast.trie_walk(*trie, sids[:, :level].contiguous())
        with torch.no_grad():
            penalty = torch.ops.crs_fast.trie_mask(
                logits.new_zeros(rows, logits.shape[2]), node, *trie, *tokens, words, rank
            )
        column = tokens.column[level].index_select(0, code.clamp(0, tokens.column.shape[1] - 1))
        known = (code >= 0) & (code < tokens.column.shape[1]) & (column >= 0)
        at = column.clamp(min=0)[:, None]
        legal = known & (node != NO_NODE) & (penalty.gather(1, at)[:, 0] == 0)
        # Rows without a legal child would give NaN, and a gradient of NaN.
        scaled = logits[:, level].float() / temperature
        scaled = scaled + penalty.float().masked_fill(~legal[:, None], 0.0)
        value = scaled.gather(1, at)[:, 0] - scaled.logsumexp(1)
        # Behind the end of a SID, or behind the code that left what is allowed, nothing is chosen.
        goes_on = goes_on & (code != END)
        out.append(torch.where(goes_on, torch.where(legal, value, -torch.inf), 0.0))
        goes_on = goes_on & legal
    return torch.stack(out, 1)
