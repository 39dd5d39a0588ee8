"""Attention of beams that share a prompt: its keys are read once, ancestors by index."""

from __future__ import annotations

import importlib.util

import torch

LIBRARY = torch.library.Library("crs_fast", "FRAGMENT")
LIBRARY.define(
    "tree_attention(Tensor query, Tensor key, Tensor value, Tensor ancestors, int prompt_length, "
    "Tensor? prompt_mask, float scale, float? softcap) -> Tensor"
)


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
        query: float [B, H, M, D].
        key: [B, G, S, D], the prompt's columns first, then the tree's slots; H is a multiple of G.
        value: [B, G, S, E].
        ancestors: int64 [B, M, T], slots each beam sees, its own among them, distinct.
        prompt_length: P, columns of the prompt.
        prompt_mask: bool [B, P], None means all; at least one a row.
        scale: of the scores; None means D ** -0.5.
        softcap: caps scores to softcap * tanh(scores / softcap).

    Returns:
        [B, M, H, E], of the query's dtype; scores and weights are float32.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check(query, key, value, ancestors, prompt_length, prompt_mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    arguments = (query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap)
    if torch.compiler.is_compiling():
        return torch.ops.crs_fast.tree_attention(*arguments)
    return _attend(*arguments)  # without the dispatcher's microseconds


def _attend(query, key, value, *rest):
    if query.is_cuda and importlib.util.find_spec("triton") is not None:
        from . import triton as triton_kernel

        with torch.cuda.device(query.device):  # Triton launches on the current one
            return triton_kernel.tree_attention(query, key, value, *rest)
    return _grouped(query, key, value, *rest)


def fake_tree_attention(query, key, value, *rest):
    """The shape of the result, for tracing."""
    batch, heads, beams, _ = query.shape
    return query.new_empty(batch, beams, heads, value.shape[3])


def _check(query, key, value, ancestors, prompt_length, prompt_mask) -> None:
    batch, heads, beams, width = query.shape
    wanted = {
        "key": (key.shape, (batch, key.shape[1], key.shape[2], width)),
        "value": (value.shape[:3], key.shape[:3]),
        "ancestors": (ancestors.shape[:2], (batch, beams)),
    }
    if prompt_mask is not None:
        wanted["prompt_mask"] = (prompt_mask.shape, (batch, prompt_length))
    for name, (got, expected) in wanted.items():
        if tuple(got) != tuple(expected):
            raise ValueError(
                f"tree_attention: {name} must have shape {tuple(expected)} (got {tuple(got)})"
            )
    if heads % key.shape[1]:
        raise ValueError(
            f"tree_attention: query heads must be a multiple of key heads, {key.shape[1]} "
            f"(got {heads})"
        )


def _grouped(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap):
    """In PyTorch: the beams and heads that share a prompt's keys are the rows of one matmul."""
    batch, heads, beams, width = query.shape
    groups, depth = key.shape[1], ancestors.shape[2]
    per = heads // groups
    query = (query * scale).reshape(batch, groups, per * beams, width)
    shared = query @ key[:, :, :prompt_length].transpose(2, 3)  # [B, G, per * M, P]

    slots = ancestors.reshape(batch, 1, beams * depth, 1) + prompt_length

    def own(states: torch.Tensor) -> torch.Tensor:
        index = slots.expand(-1, groups, -1, states.shape[3])
        return states.gather(2, index).view(batch, groups, 1, beams, depth, -1)

    lone = query.view(batch, groups, per, beams, 1, width)
    lone = (lone * own(key)).sum(-1)  # [B, G, per, M, T]
    scores = torch.cat([shared, lone.view(batch, groups, per * beams, depth)], 3).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if prompt_mask is not None:
        hidden = ~prompt_mask[:, None, None]
        scores[..., :prompt_length].masked_fill_(hidden, float("-inf"))
    weights = scores.softmax(3).to(query.dtype)
    out = weights[..., :prompt_length] @ value[:, :, :prompt_length]  # [B, G, per * M, E]
    tail = weights[..., prompt_length:].view(batch, groups, per, beams, depth, 1)
    out = out.view(batch, groups, per, beams, -1) + (tail * own(value)).sum(4)
    return out.reshape(batch, heads, beams, -1).transpose(1, 2).contiguous()


LIBRARY.impl("tree_attention", _attend, "CPU")
LIBRARY.impl("tree_attention", _attend, "CUDA")
torch.library.register_fake("crs_fast::tree_attention", fake_tree_attention, lib=LIBRARY)
