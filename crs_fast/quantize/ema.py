"""Trains codebooks by moving averages of the rows they code, instead of by gradients."""

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
    """Update the moving averages with a batch and set the codebooks to them, all in place.

        weights = decay * weights + (1 - decay) * counts
        totals  = decay * totals  + (1 - decay) * sums
        codebooks = totals / weights                     # a code with weight 0 stays as it is

    Args:
        codebooks: float32 [L, K, D].
        weights, totals: state of the averages, float32 [L, K] and [L, K, D].
        counts, sums: the batch's, from `ops.residual_statistics`, summed over all processes.
        decay: in [0, 1).

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1.
    """
    weights.lerp_(counts.to(weights.dtype), 1 - decay)
    totals.lerp_(sums.to(totals.dtype), 1 - decay)
    alive = (weights > 1e-6)[..., None]
    codebooks.copy_(torch.where(alive, totals / weights.clamp(min=1e-6)[..., None], codebooks))
