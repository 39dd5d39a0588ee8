"""How well a quantizer fits a catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from crs_fast.quantize.residual import ResidualQuantizer


def code_usage(codes: torch.Tensor, num_codes: int) -> tuple[list[float], list[float]]:
    """Share of codes in use and perplexity exp(entropy) of the codes, a level.

    Args:
        codes: int [N, L] in [0, num_codes), N >= 1.
        num_codes: K; perplexity is K where every code is used equally.
    """
    usage, perplexity = [], []
    for column in codes.T:
        counts = torch.bincount(column, minlength=num_codes).double()
        usage.append(float((counts > 0).double().mean()))
        entropy = torch.special.entr(counts / counts.sum()).sum()
        perplexity.append(float(entropy.exp()))
    return usage, perplexity


def quantization_report(
    x: torch.Tensor, quantizer: ResidualQuantizer, codes: torch.Tensor, sids: torch.Tensor
) -> dict[str, Any]:
    """Figures of a quantized catalogue, ready for JSON.

    Args:
        x: float [N, D], the embeddings, N >= 1.
        quantizer: a fitted one.
        codes: int64 [N, L], as encoded.
        sids: int64 [N, L], after `resolve_collisions`.

    Returns:
        items, levels, codes; reconstruction_error: mean over items of |x - x'|^2, from the codes
        as encoded; unexplained_variance: the same over the mean |x - mean(x)|^2 (0 is perfect);
        usage and perplexity: lists, one figure a level; collision_rate: 1 - distinct / N before
        resolution; colliding_items: items that shared a SID; largest_bucket: most items on one
        SID; moved_items: rows that resolution changed; unique: no SID is held twice after it.
    """
    points = torch.as_tensor(x).to(codes.device).double()
    error = (points - quantizer.decode(codes).double()).square().sum(-1).mean()
    variance = (points - points.mean(0)).square().sum(-1).mean()
    usage, perplexity = code_usage(codes, quantizer.config.codes)
    _, buckets = torch.unique(codes, dim=0, return_counts=True)
    return {
        "items": len(codes),
        "levels": quantizer.config.levels,
        "codes": quantizer.config.codes,
        "reconstruction_error": float(error),
        "unexplained_variance": float(error / variance) if float(variance) > 0 else 0.0,
        "usage": usage,
        "perplexity": perplexity,
        "collision_rate": 1 - len(buckets) / len(codes),
        "colliding_items": int(buckets[buckets > 1].sum()),
        "largest_bucket": int(buckets.max()),
        "moved_items": int((codes != sids).any(-1).sum()),
        "unique": len(torch.unique(sids, dim=0)) == len(sids),
    }
