"""Attention of beams that share a prompt: its keys are read once, ancestors by index. What the op
computes, and every check."""

from __future__ import annotations

import torch

from . import dispatch
from .checks import check
from .dispatch import fake_tree_attention

__all__ = ["fake_tree_attention", "tree_attention"]


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
    """Each beam attends to its request's prompt and to its own ancestors.

        keys of beam m = key[:prompt_length] where prompt_mask, key[prompt_length + ancestors[m]]
        out[m] = softmax(scale * query[m] @ keys.T) @ values

    Args:
        query: float16, bfloat16, float32 or float64 [B, H, M, D].
        key: [B, G, S, D], of the query's dtype: the prompt's positions first, then the tree's
            slots; H is a multiple of G.
        value: [B, G, S, E], of one of these dtypes.
        ancestors: int64 [B, M, T], slots that each beam sees, its own among them, distinct.
        prompt_length: P, positions of the prompt.
        prompt_mask: bool [B, P], None means all; at least one per request.
        scale: of the scores; None means D ** -0.5.
        softcap: caps scores to softcap * tanh(scores / softcap).

    Returns:
        [B, M, H, E], of the query's dtype; scores and weights are float32.

    Raises:
        ValueError: shapes that do not fit together, another dtype, or several devices.
    """
    check(query, key, value, ancestors, prompt_length, prompt_mask, softcap)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return dispatch.attend(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap)
