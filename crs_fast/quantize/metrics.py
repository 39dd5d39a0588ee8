"""How well a quantizer fits a catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crs_fast.ops.host import as_tensor

if TYPE_CHECKING:
    from crs_fast.quantize.residual import ResidualQuantizer


_ROWS = 1 << 14


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


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of counts [K]: 0 where all are equal, near 1 where one has everything."""
    ordered = counts.double().sort().values
    size, total = len(ordered), float(ordered.sum())
    if not total:
        return 0.0
    rank = torch.arange(1, size + 1, dtype=torch.float64, device=ordered.device)
    return float((2 * rank - size - 1) @ ordered) / (size * total)


@torch.no_grad()
def neighbourhood_preservation(
    x: Any, codes: torch.Tensor, queries: int = 1000, among: int = 100_000, seed: int = 0
) -> dict[str, list[float]]:
    """How often an item and its nearest neighbour share the first l codes, for l = 1 .. L.

    Args:
        x: float [N, D], the embeddings, N >= 2 (else every list is empty).
        codes: int [N, L].
        queries: items asked about, drawn at random.
        among: items that neighbours are sought among, drawn at random where there are more.
        seed: of both draws.

    Returns:
        nearest: share of queries whose nearest neighbour (Euclidean; ties to the lower row) has
        the same first l codes; chance: the same for a random other item.
    """
    if len(x) < 2:
        return {"nearest": [], "chance": []}
    generator = torch.Generator("cpu").manual_seed(seed)
    pool = (
        torch.randperm(len(x), generator=generator, device="cpu")[:among]
        .sort()
        .values.to(codes.device)
    )
    chosen = (
        x[pool.to(x.device)] if isinstance(x, torch.Tensor) else np.array(x[pool.cpu().numpy()])
    )
    points, labels = as_tensor(chosen).to(codes.device).float(), codes[pool]
    points = points - points.mean(0)
    asked = torch.randperm(len(pool), generator=generator, device="cpu")[:queries].to(codes.device)
    squares = points.square().sum(-1)
    near = []
    for block in asked.split(128):
        distance = squares - 2 * points[block] @ points.T  # [q, among]
        distance[torch.arange(len(block), device="cpu"), block] = torch.inf
        near.append(distance.argmin(-1))
    # A shift by 1 .. n - 1 is a random other item.
    shift = torch.randint(1, len(pool), (len(asked),), generator=generator, device="cpu").to(
        codes.device
    )
    other = (asked + shift) % len(pool)

    def shared(partner: torch.Tensor) -> list[float]:
        same = (labels[asked] == labels[partner]).long().cumprod(-1)
        return same.double().mean(0).tolist()

    return {"nearest": shared(torch.cat(near)), "chance": shared(other)}


def _error_and_variance(
    x: Any, quantizer: ResidualQuantizer, codes: torch.Tensor
) -> tuple[float, float]:
    """Means over items of |x - x'|^2 and |x - mean(x)|^2, in pieces."""

    mapped = isinstance(x, np.memmap)  # its pages are copied: torch wants writable memory

    def pieces() -> Iterator[tuple[int, torch.Tensor]]:
        for at in range(0, len(codes), _ROWS):
            part = as_tensor(np.array(x[at : at + _ROWS]) if mapped else x[at : at + _ROWS])
            yield at, part.to(codes.device).double()

    total = sum(part.sum(0) for _, part in pieces())
    mean, error, variance = total / len(codes), 0.0, 0.0
    for at, part in pieces():
        decoded = quantizer.decode(codes[at : at + _ROWS]).double()
        error += float((part - decoded).square().sum())
        variance += float((part - mean).square().sum())
    return error / len(codes), variance / len(codes)


def quantization_report(
    x: Any, quantizer: ResidualQuantizer, codes: torch.Tensor, sids: torch.Tensor
) -> dict[str, Any]:
    """Figures of a quantized catalogue, ready for JSON.

    Args:
        x: float [N, D], the embeddings, torch or numpy, N >= 1.
        quantizer: a fitted one.
        codes: int64 [N, L], as encoded.
        sids: int64 [N, L], after `resolve_collisions`.

    Returns:
        items, levels, codes; reconstruction_error: mean over items of |x - x'|^2, from the codes
        as encoded; unexplained_variance: the same over the mean |x - mean(x)|^2 (0 is perfect);
        usage, perplexity and gini: lists, one figure a level; collision_rate: 1 - distinct / N
        before resolution, collision_rate_after: the same after it; colliding_items: items that
        shared a SID; largest_bucket: most items on one SID before resolution; moved_items: rows
        that resolution changed; unique: no SID is held twice after it; shared_prefix: see
        `neighbourhood_preservation`, of sids.
    """
    error, variance = _error_and_variance(x, quantizer, codes)
    usage, perplexity = code_usage(codes, quantizer.config.codes)
    _, buckets = torch.unique(codes, dim=0, return_counts=True)
    distinct = len(torch.unique(sids, dim=0))
    counts = [torch.bincount(column, minlength=quantizer.config.codes) for column in codes.T]
    return {
        "items": len(codes),
        "levels": quantizer.config.levels,
        "codes": quantizer.config.codes,
        "reconstruction_error": error,
        "unexplained_variance": error / variance if variance > 0 else 0.0,
        "usage": usage,
        "perplexity": perplexity,
        "gini": [gini(count) for count in counts],
        "collision_rate": 1 - len(buckets) / len(codes),
        "collision_rate_after": 1 - distinct / len(sids),
        "colliding_items": int(buckets[buckets > 1].sum()),
        "largest_bucket": int(buckets.max()),
        "moved_items": int((codes != sids).any(-1).sum()),
        "unique": distinct == len(sids),
        "shared_prefix": neighbourhood_preservation(x, sids),
    }
