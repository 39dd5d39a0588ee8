"""Balanced assignment of rows to codes: every code gets about the same number of rows."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast._arguments import plain

BLOCK_ELEMENTS = 1 << 22


@torch.no_grad()
def sinkhorn_codes(
    x: torch.Tensor,
    codebook: torch.Tensor,
    epsilon: float = 0.01,
    iterations: int = 50,
) -> torch.Tensor:
    """Assign rows to codewords by entropic optimal transport, with equal shares per codeword.

        S = -D / epsilon, D the squared distances scaled to [-1, 1]
        repeat: f = -logsumexp_k(S + g);  g = log(N / K) - logsumexp_n(S + f)
        codes = argmax_k(S + g)

    It computes in the log domain, so that a small epsilon does not underflow, and in blocks of
    rows that are recomputed in each iteration, so that N x K values are never in memory.

    Args:
        x: float [N, D].
        codebook: float [K, D], on x's device.
        epsilon: a smaller one keeps rows closer to their nearest codeword and balances more
            slowly.
        iterations: number of Sinkhorn iterations.

    Returns:
        codes int64 [N]; ties go to the lower code.

    Raises:
        ValueError: epsilon or iterations is not above 0, or x and codebook are not finite floats of
            one width on one device.

    Source: Cuturi 2013 (arXiv 1306.0895), algorithm 1; for codes, LC-Rec (arXiv 2311.09049), 3.2.
    """
    if not 0 < (plain(epsilon, float) or 0) < torch.inf or (plain(iterations, int) or 0) < 1:
        raise ValueError(
            "sinkhorn_codes: epsilon and iterations must be above 0, a finite number and an "
            f"integer (got {epsilon!r}, {iterations!r})"
        )
    _check_rows(x, codebook)
    rows, num_codes = len(x), len(codebook)
    if not rows:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    x, codebook = x.float(), codebook.float()
    centre = codebook.mean(0)  # subtracting it leaves distances as they are and rounds less
    x, codebook = x - centre, codebook - centre
    squares = codebook.square().sum(-1)
    step = max(1, BLOCK_ELEMENTS // num_codes)

    def distances(at: int) -> torch.Tensor:
        block = x[at : at + step]
        return block.square().sum(-1, keepdim=True) + squares - 2 * block @ codebook.T

    starts = range(0, rows, step)
    extremes = [distances(at).aminmax() for at in starts]
    low = torch.stack([e.min for e in extremes]).min()
    high = torch.stack([e.max for e in extremes]).max()
    if not bool(torch.isfinite(high - low)):
        raise ValueError(
            "sinkhorn_codes: x and codebook must be finite, and so must their squared distances "
            "(got NaN or infinity)"
        )
    scale = -2 / ((high - low).clamp(min=torch.finfo(torch.float32).tiny) * epsilon)

    share = torch.log(torch.tensor(rows / num_codes, dtype=torch.float32, device=x.device))
    balance = torch.zeros(num_codes, device=x.device, dtype=torch.float32)  # g
    for _ in range(iterations):
        code_mass = torch.full((num_codes,), -torch.inf, device=x.device)
        for at in starts:
            scores = (distances(at) - low) * scale
            row_balance = -(scores + balance).logsumexp(-1, keepdim=True)  # f
            code_mass = torch.logaddexp(code_mass, (scores + row_balance).logsumexp(0))
        balance = share - code_mass
    return torch.cat([((distances(at) - low) * scale + balance).argmax(-1) for at in starts])


def _check_rows(x: Any, codebook: Any) -> None:
    for name, rows in (("x", x), ("codebook", codebook)):
        dense = isinstance(rows, torch.Tensor) and rows.layout == torch.strided
        if not (dense and rows.ndim == 2 and rows.is_floating_point() and not rows.is_meta):
            kind = f"{rows.dtype} {list(rows.shape)}" if dense else type(rows).__name__
            raise ValueError(
                f"sinkhorn_codes: {name} must be a dense float tensor of two axes (got {kind})"
            )
    if codebook.shape[1] != x.shape[1] or not len(codebook) or codebook.device != x.device:
        raise ValueError(
            f"sinkhorn_codes: codebook must be [K, {x.shape[1]}] on {x.device}, as x is, K >= 1 "
            f"(got {list(codebook.shape)} on {codebook.device})"
        )
