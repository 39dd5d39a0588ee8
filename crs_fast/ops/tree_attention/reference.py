"""Plain-PyTorch oracle of tree attention: one dense mask."""

from __future__ import annotations

import torch


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ancestors: torch.Tensor,
    prompt_length: int,
    prompt_mask: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """See `crs_fast.ops.tree_attention.tree_attention`; computed in float32."""
    batch, heads, beams, width = query.shape
    columns = key.shape[2]
    visible = torch.zeros(batch, beams, columns, dtype=torch.bool, device=query.device)
    visible[..., :prompt_length] = True if prompt_mask is None else prompt_mask[:, None]
    visible.scatter_(2, ancestors.long() + prompt_length, True)
    key, value = (t.float().repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    scores = query.float() @ key.transpose(2, 3) * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2).to(query.dtype)
