"""Balanced assignment of rows to codes: every code gets about the same number of rows."""

from __future__ import annotations

import torch

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
        ValueError: epsilon or iterations is not above 0.

    Source: Cuturi 2013 (arXiv 1306.0895), algorithm 1; for codes, LC-Rec (arXiv 2311.09049), 3.2.
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(
            f"sinkhorn_codes: epsilon and iterations must be above 0 (got {epsilon}, {iterations})"
        )
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
