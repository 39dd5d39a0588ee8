"""Registration of the vocabulary's log-sum-exp with torch, and which kernel takes a call: Triton on
CUDA, else PyTorch calls (`reference.py`)."""

from __future__ import annotations

import importlib.util

import torch

from ..library import register
from . import reference
from .checks import check


def normalizers(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> torch.Tensor:
    """`torch.ops.crs_fast.vocab_logsumexp`, without the dispatcher's microseconds where nobody
    traces the call."""
    arguments = (hidden, weight, bias, scale, softcap, temperature)
    if torch.compiler.is_compiling() or hidden.is_meta:
        return torch.ops.crs_fast.vocab_logsumexp(*arguments)
    return _normalizers(*arguments)


def _normalizers(hidden, weight, bias, scale, softcap, temperature):
    if hidden.is_cuda and importlib.util.find_spec("triton") is not None:
        from . import triton as triton_kernel

        with torch.cuda.device(hidden.device):  # Triton launches on the current one
            return triton_kernel.vocab_logsumexp(hidden, weight, bias, scale, softcap, temperature)
    return reference.vocab_logsumexp(hidden, weight, bias, scale, softcap, temperature)


def _checked(hidden, weight, bias, scale, softcap, temperature):
    check(hidden, weight, bias, scale, softcap, temperature)
    return _normalizers(hidden, weight, bias, scale, softcap, temperature)


def _fake(hidden, *rest):
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


register(
    "vocab_logsumexp(Tensor hidden, Tensor weight, Tensor? bias, float scale, float? softcap, "
    "float temperature) -> Tensor",
    _checked,
    _fake,
)
