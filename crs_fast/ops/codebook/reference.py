"""Plain-PyTorch oracle of `residual_lookup`: float64, every distance written out."""

from __future__ import annotations

import torch


def residual_lookup(x: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest codeword level by level, in float64.

    Args:
        x: float [N, D].
        codebooks: float [L, K, D].

    Returns:
        codes int64 [N, L], ties to the lower code, and residual float64 [N, D]. Holds N x K x D
        float64 values: for small inputs only.
    """
    residual = x.double()
    codes = torch.empty(x.shape[0], codebooks.shape[0], dtype=torch.int64, device=x.device)
    for level, book in enumerate(codebooks.double()):
        distance = (residual[:, None, :] - book[None]).square().sum(-1)  # [N, K]
        codes[:, level] = distance.argmin(-1)
        residual = residual - book[codes[:, level]]
    return codes, residual
