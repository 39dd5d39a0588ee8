"""Residual k-means: each level's codebook is the k-means of what the levels before left over."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast.ops.codebook import residual_lookup
from crs_fast.quantize.residual import ResidualQuantizer, ResidualQuantizerConfig


def kmeans_plus_plus(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Seed k centres by k-means++ (Arthur & Vassilvitskii 2007).

    Args:
        x: float [N, D], N >= 1.
        k: centres to draw; past the number of distinct rows, rows repeat.
        generator: a CPU generator.

    Returns:
        Centres, rows of x, [k, D].
    """
    chosen = torch.empty(k, dtype=torch.int64)
    distance = torch.ones(len(x), dtype=torch.float64)  # to the nearest centre so far
    for i in range(k):
        mass = distance.cumsum(0)
        # With nothing left to cover, any row does.
        if float(mass[-1]) <= 0:
            mass = torch.ones_like(distance).cumsum(0)
        draw = torch.rand((), generator=generator, dtype=torch.float64) * mass[-1]
        chosen[i] = torch.searchsorted(mass, draw, right=True).clamp(max=len(x) - 1)
        new = (x - x[chosen[i]]).square().sum(-1).double().cpu()
        distance = new if i == 0 else torch.minimum(distance, new)
    return x[chosen.to(x.device)].clone()


def kmeans(
    x: torch.Tensor, centres: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from given centres; an empty cluster moves to the row farthest off.

    Args:
        x: float32 [N, D], N >= 1.
        centres: float32 [K, D].
        iterations: at most; stops once no assignment changes.

    Returns:
        Centres float32 [K, D] and the residuals float32 [N, D] they leave.
    """
    last: torch.Tensor | None = None
    for _ in range(iterations):
        codes, residual = residual_lookup(x, centres[None])
        if last is not None and torch.equal(codes, last):
            break
        last = codes
        centres = _means(x, codes[:, 0], centres)
        _refill(x, codes[:, 0], residual, centres)
    return centres, residual_lookup(x, centres[None])[1]


def _means(x: torch.Tensor, codes: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros_like(centres, dtype=torch.float64).index_add_(0, codes, x.double())
    counts = torch.bincount(codes, minlength=len(centres))[:, None]  # [K, 1]
    return torch.where(counts > 0, sums / counts.clamp(min=1), centres.double()).float()


def _refill(
    x: torch.Tensor, codes: torch.Tensor, residual: torch.Tensor, centres: torch.Tensor
) -> None:
    """Move centres without items, in place, to the rows worst served."""
    empty = (torch.bincount(codes, minlength=len(centres)) == 0).nonzero().squeeze(-1)
    error = residual.square().sum(-1)
    worst = error.sort(descending=True, stable=True).indices[: len(empty)]
    worst = worst[error[worst] > 0]
    centres[empty[: len(worst)]] = x[worst]


class RQKMeansConfig(ResidualQuantizerConfig):
    """Configuration of `RQKMeans`.

    Args:
        iterations: of Lloyd's algorithm, at most, a level.
    """

    model_type = "crs_fast_rqkmeans"

    def __init__(self, iterations: int = 100, **kwargs: Any) -> None:
        self.iterations = iterations
        super().__init__(**kwargs)


class RQKMeans(ResidualQuantizer):
    """Residual k-means in the space of the embeddings themselves; no network to train.

        for l in range(L):
            codebooks[l] = kmeans(x, K)          # k-means++ start, empty clusters refilled
            x = x - nearest(x, codebooks[l])

    `RQKMeans(levels=4, codes=64).fit(x).encode(x)`; `embed` is the identity. Methods as in
    `ResidualQuantizer`. Source: Chen et al. 2010, "Approximate nearest neighbor search by
    residual vector quantization", section 3.
    """

    config_class = RQKMeansConfig

    def _build(self, input_dim: int) -> None:
        self.codebooks = self._new_codebooks(input_dim)
        self.codebooks.requires_grad_(False)

    def _fit(self, x: torch.Tensor, progress: bool) -> None:
        from tqdm.auto import trange

        generator = torch.Generator().manual_seed(self.config.seed)
        rest = x
        for level in trange(self.config.levels, desc="RQ-KMeans", disable=not progress):
            start = kmeans_plus_plus(rest, self.config.codes, generator)
            centres, rest = kmeans(rest, start, self.config.iterations)
            self.codebooks.data[level].copy_(centres)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _unembed(self, z: torch.Tensor) -> torch.Tensor:
        return z
