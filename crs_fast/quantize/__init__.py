"""From item embeddings to semantic IDs: residual quantizers, collision resolution and metrics.

The quantizers are `transformers` models, so their modules are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from crs_fast._arguments import Rule, at_least, check_arguments
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
    "register",
    "resolve_collisions",
    "sinkhorn_codes",
]

_RULES = (Rule("levels codes", int, *at_least(1)), Rule("progress", bool))
_LAZY = {
    "ResidualQuantizer": "residual",
    "RQKMeans": "rqkmeans",
    "RQKMeansConfig": "rqkmeans",
    "RQVAE": "rqvae",
    "RQVAEConfig": "rqvae",
}


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name as Any

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def register() -> None:
    """Make `AutoConfig` and `AutoModel` of transformers load `RQVAE` and `RQKMeans`."""
    from transformers import AutoConfig, AutoModel

    from crs_fast.quantize.rqkmeans import RQKMeans, RQKMeansConfig
    from crs_fast.quantize.rqvae import RQVAE, RQVAEConfig

    for config, model in ((RQVAEConfig, RQVAE), (RQKMeansConfig, RQKMeans)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)


def build_sids(
    embeddings: Any,
    levels: int = 4,
    codes: int = 64,
    method: str = "rqvae",
    seed: int = 0,
    progress: bool = False,
) -> tuple[ResidualQuantizer, torch.Tensor, dict[str, Any]]:
    """Fit a quantizer on a catalogue and give every item its own semantic ID.

        quantizer.fit(embeddings); sids = resolve_collisions(quantizer.encode(embeddings))

    Args:
        embeddings: float [N, D], one row per item; a torch tensor, a numpy array or a numpy
            memory map.
        levels: number of codes in a SID (L).
        codes: number of codewords per level (K).
        method: "rqvae" (the paper's method) or "rqkmeans" (no network; takes seconds).
        seed: the same seed and embeddings give the same SIDs.
        progress: show a progress bar.

    Returns:
        The fitted quantizer, sids int64 [N, L] (all distinct) and the dict that
        `quantization_report` returns.

    Raises:
        ValueError: the method is unknown, the embeddings are not finite floats [N, D], or there
            are more items than codes ** levels.
    """
    check_arguments("build_sids", _RULES, levels=levels, codes=codes, progress=progress)
    if not hasattr(embeddings, "__len__") or getattr(embeddings, "ndim", 2) == 0:
        kind = type(embeddings).__name__
        raise ValueError(f"build_sids: embeddings must be rows of floats [N, D] (got {kind})")
    quantizer: ResidualQuantizer
    if method == "rqvae":
        from crs_fast.quantize.rqvae import RQVAE

        quantizer = RQVAE(levels=levels, codes=codes, seed=seed)
    elif method == "rqkmeans":
        from crs_fast.quantize.rqkmeans import RQKMeans

        quantizer = RQKMeans(levels=levels, codes=codes, seed=seed)
    else:
        raise ValueError(f"build_sids: method must be 'rqvae' or 'rqkmeans' (got {method!r})")
    # 64 levels of two codes are more than any count of items.
    most = quantizer.config.codes ** min(quantizer.config.levels, 64)
    if len(embeddings) > most:
        raise ValueError(
            f"build_sids: embeddings must hold at most codes ** levels = {most} items "
            f"(got {len(embeddings)})"
        )
    quantizer.fit(embeddings, progress=progress)
    assigned = quantizer.encode(embeddings)
    sids = resolve_collisions(quantizer.embed(embeddings), assigned, quantizer.codebooks)
    return quantizer, sids, quantization_report(embeddings, quantizer, assigned, sids)
