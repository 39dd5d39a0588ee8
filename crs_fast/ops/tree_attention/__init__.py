"""Attention of beams that share a prompt: its keys are read once, ancestors by index. What the op
computes, and every check."""

from __future__ import annotations

import torch

from ..dtypes import NATIVE_FLOATS, name_of
from . import dispatch
from .dispatch import fake_tree_attention

__all__ = ["fake_tree_attention", "tree_attention"]

_FLOATS = (*NATIVE_FLOATS, torch.float64)


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
    _check(query, key, value, ancestors, prompt_length, prompt_mask, softcap)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return dispatch.attend(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap)


def _check(query, key, value, ancestors, prompt_length, prompt_mask, softcap) -> None:
    _check_tensor("query", query, query, _FLOATS, "[B, H, M, D]")
    batch, heads, beams, width = query.shape
    _check_tensor("key", key, query, (query.dtype,), "[B, G, S, D]", {0: batch, 3: width})
    _, groups, positions, _ = key.shape
    same = {0: batch, 1: groups, 2: positions}
    _check_tensor("value", value, query, _FLOATS, "[B, G, S, E]", same)
    same = {0: batch, 1: beams}
    _check_tensor("ancestors", ancestors, query, (torch.int64,), "[B, M, T]", same)
    if prompt_mask is not None:
        same = {0: batch, 1: prompt_length}
        _check_tensor("prompt_mask", prompt_mask, query, (torch.bool,), "[B, P]", same)
    if groups == 0 or heads % groups:
        raise ValueError(
            f"tree_attention: query heads must be a multiple of key heads, {groups} (got {heads})"
        )
    if not 0 <= prompt_length <= positions:
        raise ValueError(
            f"tree_attention: prompt_length must lie in 0 .. {positions}, the keys' positions "
            f"(got {prompt_length})"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"tree_attention: softcap must be above 0 (got {softcap})")


def _check_tensor(
    name: str,
    tensor: torch.Tensor,
    query: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    axes: str,
    sizes: dict[int, int] | None = None,
) -> None:
    """`sizes`: those of the axes that other arguments fix."""
    if tensor.dtype not in dtypes:
        expected = ", ".join(map(name_of, dtypes))
        raise ValueError(f"tree_attention: {name} must be {expected} (got {name_of(tensor.dtype)})")
    shape, sizes = tensor.shape, sizes or {}
    if len(shape) != axes.count(",") + 1 or any(shape[i] != n for i, n in sizes.items()):
        names = axes[1:-1].split(", ")
        fixed = ", ".join(f"{names[i]} = {n}" for i, n in sizes.items())
        expected = f"{axes} with {fixed}" if fixed else axes
        raise ValueError(f"tree_attention: {name} must have shape {expected} (got {list(shape)})")
    if tensor.device != query.device:
        raise ValueError(
            f"tree_attention: {name} must be on the query's device {query.device} "
            f"(got {tensor.device})"
        )
