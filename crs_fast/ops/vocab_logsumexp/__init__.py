"""What a language model's logits are normalised by, without the logits: what the op computes, and
every check."""

from __future__ import annotations

import torch

from .checks import check
from .dispatch import normalizers

__all__ = ["vocab_logsumexp"]


def vocab_logsumexp(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The log-sum-exp of each row's logits over the vocabulary. On CUDA, where
    Triton is installed, nothing of [R, V] is written.

        logits = scale * (hidden @ weight.T + bias)             # in the dtype of the weights
        logits = softcap * tanh(logits / softcap)               # where there is one
        out[r] = logsumexp(logits[r] / temperature)

    Args:
        hidden: float16, bfloat16 or float32 [R, D].
        weight: [V, D], of the same dtype.
        bias: [V], of the same dtype; None means none.
        scale: of the logits.
        softcap: caps logits; None means they are not capped.
        temperature: > 0.

    Returns:
        float32 [R]; NaN or infinite where a logit is NaN or +inf, or all are -inf.

    Raises:
        ValueError: shapes that do not fit together, another dtype, several devices, or numbers out
            of range.

    Source: Wijmans et al. 2024, "Cut your losses in large-vocabulary language models" (arXiv
    2411.09009), section 4.2.
    """
    check(hidden, weight, bias, scale, softcap, temperature)
    return normalizers(hidden, weight, bias, scale, softcap, temperature)
