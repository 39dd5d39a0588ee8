"""Residual codebook lookup."""

from __future__ import annotations

import torch

from crs_fast.ops.codebook import residual_lookup

from .case import Case, Ways


def lookup(size: str, device: str) -> tuple[str, Ways]:
    """Residual codebook lookup, all levels."""
    n, d, k = (200_000, 32, 256) if size == "full" else (500, 8, 16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).to(device)
    books = torch.randn(4, k, d, generator=generator).to(device)

    def cdist() -> torch.Tensor:
        residual, codes = x, []
        for book in books:
            codes.append(torch.cdist(residual, book).argmin(1))
            residual = residual - book[codes[-1]]
        return torch.stack(codes, 1)

    agree = (cdist() == residual_lookup(x, books)[0]).float().mean()
    if agree < 0.99:  # cdist rounds in float32; residual_lookup is exact
        raise AssertionError(f"lookup: the ways agree on {agree:.4f} of the codes only")
    return f"{n} x {d}, 4 levels x {k}", {
        "torch.cdist loop": cdist,
        "residual_lookup (exact)": lambda: residual_lookup(x, books),
    }


CASES = [Case("lookup", lookup, ("cpu", "cuda"))]
