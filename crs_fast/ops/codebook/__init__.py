"""Residual codebook lookup: what the ops compute, and every check of their arguments."""

from __future__ import annotations

import torch

from . import beam, dispatch
from .checks import check


def residual_lookup(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize vectors against a stack of codebooks, each level coding what the last left over.

        for l in range(L):
            codes[:, l] = argmin_k |x - codebooks[l, k]|^2        # ties to the lower code
            x = x - codebooks[l, codes[:, l]]

    "exact": the codes that float64 arithmetic chooses. Scores are taken in lower precision, and
    only codewords whose score lies within its error bound of the best are measured again in
    float64. "fast" leaves that out: scores in float32 (TF32 on CUDA) decide. All levels of a block
    of rows run while it is in cache; N x K is never in memory.

    Args:
        x: float [N, D]; float16, bfloat16, float32 or float64, any strides; N may be 0.
        codebooks: float [L, K, D], on x's device; K may exceed N.
        precision: "exact" or "fast".

    Returns:
        codes: int64 [N, L].
        residual: [N, D], what remains after the last level; float64 where an input is float64,
            float32 otherwise.

    Raises:
        ValueError: wrong type, dtype, shape, device or precision, or a value that is NaN or
            infinite.

    Source: residual quantization as in Lee et al. 2022 (arXiv 2203.01941), eq. 1.
    """
    check("residual_lookup", x, codebooks, precision)
    return torch.ops.crs_fast.residual_lookup(
        x.detach(), codebooks.detach(), precision == "exact", True
    )


def residual_codes(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> torch.Tensor:
    """The codes of `residual_lookup` alone, int64 [N, L]: no memory beyond them."""
    check("residual_codes", x, codebooks, precision)
    return torch.ops.crs_fast.residual_lookup(
        x.detach(), codebooks.detach(), precision == "exact", False
    )[0]


def residual_statistics(
    x: torch.Tensor, codebooks: torch.Tensor, precision: str = "exact"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`residual_lookup` and what k-means and moving averages need, in one pass.

        counts[l, k] = rows with codes[:, l] == k
        sums[l, k]   = sum of those rows' inputs to level l

    The sums are taken in a fixed order: the same bits with any number of threads.

    Args:
        x, codebooks, precision: as for `residual_lookup`.

    Returns:
        codes int64 [N, L], residual [N, D], counts int64 [L, K], sums float64 [L, K, D].

    Raises:
        ValueError: as `residual_lookup`.
    """
    check("residual_statistics", x, codebooks, precision)
    return torch.ops.crs_fast.residual_statistics(
        x.detach(), codebooks.detach(), precision == "exact"
    )


def beam_lookup(
    x: torch.Tensor, codebooks: torch.Tensor, beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `residual_lookup`, keeping the `beams` best prefixes at every level.

        for l in range(L):
            score(prefix + k) = |x - words of prefix - codebooks[l, k]|^2
            keep the `beams` lowest              # ties to the better prefix, then the lower code

    In float64, in blocks of rows. With one beam the codes are `residual_lookup`'s; with
    K ** (L - 1) the best there are.

    Args:
        x: float [N, D].
        codebooks: float [L, K, D], on x's device.
        beams: prefixes to keep, at least 1.

    Returns:
        codes int64 [N, L] of the lowest score, residual [N, D] (float64 where an input is, else
        float32).

    Raises:
        ValueError: as `residual_lookup`, or beams below 1.

    Source: Babenko & Lempitsky 2014, "Additive quantization", section 3.1; faiss's default.
    """
    check("beam_lookup", x, codebooks, "exact")
    if not hasattr(beams, "__index__") or beams < 1:
        raise ValueError(f"beam_lookup: beams must be an integer, at least 1 (got {beams!r})")
    for name, value in (("x", x), ("codebooks", codebooks)):
        dispatch.check_finite("beam_lookup", name, value)
    return beam.search(x, codebooks, beams)
