"""Item embeddings to semantic IDs: residual quantizers, collision resolution, their metrics.

The quantizers are `transformers` models, so they are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.quantize.collisions import add_disambiguation_level, resolve_collisions
from crs_fast.quantize.embeddings import load_embeddings
from crs_fast.quantize.metrics import quantization_report
from crs_fast.quantize.sinkhorn import sinkhorn_codes
from crs_fast.quantize.text_encoder import encode_texts

if TYPE_CHECKING:
    from crs_fast.quantize.residual import ResidualQuantizer
    from crs_fast.quantize.rqkmeans import RQKMeans, RQKMeansConfig
    from crs_fast.quantize.rqvae import RQVAE, RQVAEConfig

__all__ = [
    "RQVAE",
    "RQKMeans",
    "RQKMeansConfig",
    "RQVAEConfig",
    "ResidualQuantizer",
    "add_disambiguation_level",
    "build_sids",
    "encode_texts",
    "load_embeddings",
    "quantization_report",
    "resolve_collisions",
    "sinkhorn_codes",
]

_LAZY = {
    "ResidualQuantizer": "residual",
    "RQKMeans": "rqkmeans",
    "RQKMeansConfig": "rqkmeans",
    "RQVAE": "rqvae",
    "RQVAEConfig": "rqvae",
}


if not TYPE_CHECKING:  # else every misspelt name would pass as Any

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def build_sids(
    embeddings: Any,
    levels: int = 4,
    codes: int = 64,
    method: str = "rqvae",
    seed: int = 0,
    progress: bool = False,
) -> tuple[ResidualQuantizer, torch.Tensor, dict[str, Any]]:
    """Fit a quantizer on a catalogue and give every item a semantic ID of its own.

        quantizer.fit(embeddings); sids = resolve_collisions(quantizer.encode(embeddings))

    Args:
        embeddings: float [N, D], one row an item; torch, numpy or a numpy memory map.
        levels: codes a SID has (L).
        codes: codewords a level (K).
        method: "rqvae" (the paper's) or "rqkmeans" (no network, seconds).
        seed: same seed and embeddings, same SIDs.
        progress: show a progress bar.

    Returns:
        The fitted quantizer, sids int64 [N, L] (all distinct) and `quantization_report`'s dict.

    Raises:
        ValueError: unknown method, bad embeddings, or more items than codes ** levels.
    """
    quantizer: ResidualQuantizer
    if method == "rqvae":
        from crs_fast.quantize.rqvae import RQVAE

        quantizer = RQVAE(levels=levels, codes=codes, seed=seed)
    elif method == "rqkmeans":
        from crs_fast.quantize.rqkmeans import RQKMeans

        quantizer = RQKMeans(levels=levels, codes=codes, seed=seed)
    else:
        raise ValueError(f"build_sids: method must be 'rqvae' or 'rqkmeans' (got {method!r})")
    if len(embeddings) > codes**levels:
        raise ValueError(
            f"build_sids: embeddings must hold at most codes ** levels = {codes**levels} items "
            f"(got {len(embeddings)})"
        )
    quantizer.fit(embeddings, progress=progress)
    assigned = quantizer.encode(embeddings)
    sids = resolve_collisions(quantizer.embed(embeddings), assigned, quantizer.codebooks)
    return quantizer, sids, quantization_report(embeddings, quantizer, assigned, sids)
