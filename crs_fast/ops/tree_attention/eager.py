"""Tree attention in PyTorch calls: the beams and heads that share a prompt's keys are the rows of
one matmul."""

from __future__ import annotations

import torch


def tree_attention(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap):
    """See `crs_fast.ops.tree_attention.tree_attention`."""
    batch, heads, beams, width = query.shape
    groups, depth = key.shape[1], ancestors.shape[2]
    per = heads // groups
    query = (query * scale).reshape(batch, groups, per * beams, width)
    shared = query @ key[:, :, :prompt_length].transpose(2, 3)  # [B, G, per * M, P]

    slots = ancestors.reshape(batch, 1, beams * depth, 1) + prompt_length

    def own(states: torch.Tensor) -> torch.Tensor:
        index = slots.expand(-1, groups, -1, states.shape[3])
        return states.gather(2, index).view(batch, groups, 1, beams, depth, states.shape[3])

    lone = query.view(batch, groups, per, beams, 1, width)
    lone = (lone * own(key)).sum(-1)  # [B, G, per, M, T]
    scores = torch.cat([shared, lone.view(batch, groups, per * beams, depth)], 3).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if prompt_mask is not None:
        hidden = ~prompt_mask[:, None, None]
        scores[..., :prompt_length].masked_fill_(hidden, float("-inf"))
    weights = scores.softmax(3).to(value.dtype)
    out = weights[..., :prompt_length] @ value[:, :, :prompt_length]  # [B, G, per * M, E]
    tail = weights[..., prompt_length:].view(batch, groups, per, beams, depth, 1)
    out = out.view(batch, groups, per, beams, -1) + (tail * own(value)).sum(4)
    return out.reshape(batch, heads, beams, -1).transpose(1, 2).contiguous().to(query.dtype)
