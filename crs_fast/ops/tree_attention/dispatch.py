"""Registration of tree attention with torch, and which kernel takes a call: Triton on CUDA, else
PyTorch calls (`eager.py`)."""

from __future__ import annotations

import importlib.util

import torch

from ..library import register
from . import eager
from .checks import check


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ancestors: torch.Tensor,
    prompt_length: int,
    prompt_mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """`torch.ops.crs_fast.tree_attention`, without the dispatcher's microseconds where nobody
    traces the call."""
    arguments = (query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap)
    if torch.compiler.is_compiling() or query.is_meta:
        return torch.ops.crs_fast.tree_attention(*arguments)
    return _attend(*arguments)


def _attend(query, key, value, *rest):
    # Triton's tensor cores take no float64.
    on_triton = query.is_cuda and query.dtype != torch.float64
    if on_triton and importlib.util.find_spec("triton") is not None:
        from . import triton as triton_kernel

        with torch.cuda.device(query.device):  # Triton launches on the current one
            return triton_kernel.tree_attention(query, key, value, *rest)
    return eager.tree_attention(query, key, value, *rest)


def _checked_attend(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap):
    check(query, key, value, ancestors, prompt_length, prompt_mask, softcap)
    return _attend(query, key, value, ancestors, prompt_length, prompt_mask, scale, softcap)


def fake_tree_attention(query, key, value, *rest):
    """The shape of the result, for tracing."""
    batch, heads, beams, _ = query.shape
    return query.new_empty(batch, beams, heads, value.shape[3])


register(
    "tree_attention(Tensor query, Tensor key, Tensor value, Tensor ancestors, int prompt_length, "
    "Tensor? prompt_mask, float scale, float? softcap) -> Tensor",
    _checked_attend,
    fake_tree_attention,
)
