"""Residual k-means: each level's codebook is the k-means of the earlier levels' residuals."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast._arguments import Rule, at_least, check_settings
from crs_fast.ops.codebook import residual_lookup
from crs_fast.quantize.kmeans import (
    BATCH_ROWS,
    kmeans,
    kmeans_plus_plus,
    lloyd,
    mini_batches,
)
from crs_fast.quantize.residual import ResidualQuantizer, ResidualQuantizerConfig
from crs_fast.quantize.sources import ArraySource, Source

__all__ = ["RQKMeans", "RQKMeansConfig", "kmeans", "kmeans_plus_plus"]

_SEED_ROWS = 1 << 14  # for k-means++, which reads its rows K times
_RULES = (
    Rule("iterations epochs", int, *at_least(0)),
    Rule("batch_size", int, *at_least(1), optional=True),
)


class RQKMeansConfig(ResidualQuantizerConfig):
    """Configuration of `RQKMeans`.

    Args:
        iterations: the largest number of Lloyd iterations per level; each reads all rows.
        batch_size: rows per mini-batch; None runs Lloyd's algorithm instead.
        epochs: passes over the rows per level, if batch_size is given.
    """

    model_type = "crs_fast_rqkmeans"

    def __init__(
        self,
        iterations: int = 100,
        batch_size: int | None = None,
        epochs: int = 3,
        **kwargs: Any,
    ) -> None:
        self.iterations, self.batch_size, self.epochs = iterations, batch_size, epochs
        check_settings(self, _RULES)
        super().__init__(**kwargs)


class RQKMeans(ResidualQuantizer):
    """Residual k-means in the space of the embeddings; there is no network to train.

        for l in range(L):
            codebooks[l] = kmeans(x, K)          # starts by k-means++, refills empty clusters
            x = x - nearest(x, codebooks[l])

    Use it as `RQKMeans(levels=4, codes=64).fit(x).encode(x)`. `embed` is the identity; the other
    methods are those of `ResidualQuantizer`. `fit` takes an array, a numpy memory map or an
    iterable of batches. The last two are read again in every pass and never loaded whole.

    Source: Chen et al. 2010, "Approximate nearest neighbor search by residual vector
    quantization", section 3.
    """

    config_class = RQKMeansConfig
    streams = True

    def _build(self, input_dim: int) -> None:
        self.codebooks = self._new_codebooks(input_dim)
        self.codebooks.requires_grad_(False)

    def _fit(self, source: Source, progress: bool) -> None:
        from tqdm.auto import trange

        config = self.config
        generator = torch.Generator("cpu").manual_seed(config.seed)
        rest = source if isinstance(source, ArraySource) and source.in_memory else None
        for level in trange(config.levels, desc="RQ-KMeans", disable=not progress):
            # Residuals are kept if the rows are in memory, else recomputed in every pass.
            before = None if rest is not None or not level else self.codebooks[:level]
            rows = (rest or source).sample(max(_SEED_ROWS, 32 * config.codes), generator)
            if before is not None:
                rows = residual_lookup(rows, before)[1]
            centres = source.same(kmeans_plus_plus(rows, config.codes, generator))
            size = BATCH_ROWS if rest is None else None
            if config.batch_size is None:
                centres = lloyd(rest or source, centres, config.iterations, before, size)
            else:
                centres = mini_batches(
                    rest or source, centres, config.epochs, config.batch_size, generator, before
                )
            self.codebooks.data[level].copy_(centres)
            if rest is not None:
                rest = ArraySource(residual_lookup(rest.x, centres[None])[1], rest.sharded)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _unembed(self, z: torch.Tensor) -> torch.Tensor:
        return z
