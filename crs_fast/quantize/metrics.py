"""Measures how well a quantizer fits a catalogue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crs_fast.ops.host import as_integers, as_tensor
from crs_fast.quantize.embeddings import check_embeddings

if TYPE_CHECKING:
    from crs_fast.quantize.residual import ResidualQuantizer


_ROWS = 1 << 14


def code_usage(codes: torch.Tensor, num_codes: int) -> tuple[list[float], list[float]]:
    """Per level, the share of codes in use and the codes' perplexity exp(entropy).

    Args:
        codes: int [N, L] in [0, num_codes), N >= 1.
        num_codes: K; the perplexity is K if every code is used equally often.
    """
    usage, perplexity = [], []
    for level_codes in codes.T:
        counts = torch.bincount(level_codes, minlength=num_codes).double()
        usage.append(float((counts > 0).double().mean()))
        entropy = torch.special.entr(counts / counts.sum()).sum()
        perplexity.append(float(entropy.exp()))
    return usage, perplexity


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of counts [K]: 0 if all are equal, near 1 if one code has all items."""
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
        queries: number of items whose neighbours are looked up, drawn at random.
        among: number of items in which neighbours are searched, drawn at random if there are more.
        seed: seed of both draws.

    Returns:
        nearest: the share of queries whose nearest neighbour (Euclidean; ties go to the lower
        index) has the same first l codes; chance: the same share with a random other item instead.
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
    query = torch.randperm(len(pool), generator=generator, device="cpu")[:queries].to(codes.device)
    squares = points.square().sum(-1)
    nearest = []
    for block in query.split(128):
        distance = squares - 2 * points[block] @ points.T  # [q, among]
        distance[torch.arange(len(block), device="cpu"), block] = torch.inf
        nearest.append(distance.argmin(-1))
    # A shift by 1 .. n - 1 gives a random item other than the query.
    shift = torch.randint(1, len(pool), (len(query),), generator=generator, device="cpu")
    other = (query + shift.to(codes.device)) % len(pool)

    def shared(partner: torch.Tensor) -> list[float]:
        same = (labels[query] == labels[partner]).long().cumprod(-1)
        return same.double().mean(0).tolist()

    return {"nearest": shared(torch.cat(nearest)), "chance": shared(other)}


def _error_and_variance(
    x: Any, quantizer: ResidualQuantizer, codes: torch.Tensor
) -> tuple[float, float]:
    """Means over items of |x - x'|^2 and |x - mean(x)|^2; x is read in pieces."""

    mapped = isinstance(x, np.memmap)  # copied piece by piece, as torch wants writable memory

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


def _checked(x: Any, quantizer: Any, codes: Any, sids: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and SIDs as tensors."""
    op = "quantization_report"
    config: Any = getattr(quantizer, "config", None)
    if not hasattr(quantizer, "codebooks") or not hasattr(config, "levels"):
        raise ValueError(
            f"{op}: quantizer must be a fitted quantizer (got {type(quantizer).__name__})"
        )
    if not isinstance(x, list | tuple):
        check_embeddings(f"{op}: x", x)
    elif not x:
        raise ValueError(f"{op}: x must be floats [N, D], N at least 1 (got no rows)")
    width = len(x[0])
    if width != config.input_dim:
        raise ValueError(f"{op}: x must have {config.input_dim} columns (got {width})")
    made = []
    for name, values in (("codes", codes), ("sids", sids)):
        tensor = as_integers(f"{op}: {name}", values)
        if tuple(tensor.shape) != (len(x), config.levels):
            raise ValueError(
                f"{op}: {name} must be integers [{len(x)}, {config.levels}] "
                f"(got {list(tensor.shape)})"
            )
        if not 0 <= int(tensor.min()) <= int(tensor.max()) < config.codes:
            raise ValueError(
                f"{op}: {name} must lie in [0, {config.codes}) "
                f"(got [{int(tensor.min())}, {int(tensor.max())}])"
            )
        made.append(tensor)
    return made[0], made[1]


def quantization_report(
    x: Any, quantizer: ResidualQuantizer, codes: torch.Tensor, sids: torch.Tensor
) -> dict[str, Any]:
    """Measures of a quantized catalogue, as a dict that can be written as JSON.

    Args:
        x: float [N, D], the embeddings, torch or numpy, N >= 1.
        quantizer: a fitted quantizer.
        codes: int64 [N, L], as encoded.
        sids: int64 [N, L], after `resolve_collisions`.

    Returns:
        items, levels, codes: the sizes N, L and K.
        reconstruction_error: the mean of |x - x'|^2 over items, x' decoded from `codes`.
        unexplained_variance: this error divided by the mean of |x - mean(x)|^2; 0 is perfect.
        usage, perplexity, gini: lists with one value per level.
        collision_rate, collision_rate_after: 1 - distinct SIDs / N, before and after resolution.
        colliding_items: number of items that shared a SID before resolution.
        largest_bucket: the most items on one SID before resolution.
        moved_items: number of items whose SID the resolution changed.
        unique: whether all SIDs are distinct after resolution.
        shared_prefix: what `neighbourhood_preservation` returns for `sids`.

    Raises:
        ValueError: x is not floats [N, D] of the quantizer's width, or `codes` or `sids` are not
            integers [N, L] in [0, K).
    """
    codes, sids = _checked(x, quantizer, codes, sids)
    error, variance = _error_and_variance(x, quantizer, codes)
    if not math.isfinite(error + variance):
        raise ValueError("quantization_report: x must be finite (got NaN or infinity)")
    usage, perplexity = code_usage(codes, quantizer.config.codes)
    _, buckets = torch.unique(codes, dim=0, return_counts=True)
    distinct = len(torch.unique(sids, dim=0))
    counts = [torch.bincount(level, minlength=quantizer.config.codes) for level in codes.T]
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
