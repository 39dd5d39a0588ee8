"""Plain-PyTorch oracle of the vocabulary's log-sum-exp: all logits, then their log-sum-exp."""

from __future__ import annotations

import torch


def vocab_logsumexp(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """See `crs_fast.ops.vocab_logsumexp.vocab_logsumexp`."""
    logits = torch.nn.functional.linear(hidden, weight, bias)  # [R, V]
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return (logits.float() / temperature).logsumexp(1)
