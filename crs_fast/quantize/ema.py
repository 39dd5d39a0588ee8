"""Codebooks that follow moving averages of what they code, instead of gradients."""

from __future__ import annotations

import torch


@torch.no_grad()
def ema_update_(
    codebooks: torch.Tensor,
    weights: torch.Tensor,
    totals: torch.Tensor,
    counts: torch.Tensor,
    sums: torch.Tensor,
    decay: float,
) -> None:
    """Move the codebooks, in place, to the averages that a batch brings.

        weights = decay * weights + (1 - decay) * counts
        totals  = decay * totals  + (1 - decay) * sums
        codebooks = totals / weights                     # a code without weight stays

    Args:
        codebooks: float32 [L, K, D].
        weights, totals: the averages' state, float32 [L, K] and [L, K, D].
        counts, sums: of the batch, from `ops.residual_statistics` (summed over all processes).
        decay: in [0, 1).

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1.
    """
    weights.lerp_(counts.to(weights.dtype), 1 - decay)
    totals.lerp_(sums.to(totals.dtype), 1 - decay)
    alive = (weights > 1e-6)[..., None]
    codebooks.copy_(torch.where(alive, totals / weights.clamp(min=1e-6)[..., None], codebooks))
