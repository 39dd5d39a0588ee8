"""Gradients through a quantizer, which has none of its own."""

from __future__ import annotations

import torch

GRADIENTS = ("straight_through", "rotation")


def straight_through(z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized` forward, the identity backward. Both [n, D]."""
    return z + (quantized - z).detach()


def rotation(z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized` forward; backward, the rotation and scaling that lead from z to it.

        R = I - 2 s s^T + 2 q' z'^T,  s = (z' + q') / |z' + q'|,  z' = z / |z|, q' = q / |q|
        out = |q| / |z| * R z                         # R and the factor are constants

    Rows where no such rotation exists (a zero vector, or opposite ones) pass straight through.

    Args:
        z: float [n, D], with gradients.
        quantized: float [n, D].

    Source: Fifty et al. 2024 (arXiv 2410.06424), eq. 4 and section 4.2.
    """
    with torch.no_grad():
        length, target = z.norm(dim=-1, keepdim=True), quantized.norm(dim=-1, keepdim=True)
        tiny = torch.finfo(z.dtype).tiny ** 0.5
        from_, to = z / length.clamp(min=tiny), quantized / target.clamp(min=tiny)
        between = from_ + to
        gap = between.norm(dim=-1, keepdim=True)
        usable = (length > tiny) & (target > tiny) & (gap > 1e-3)
        axis = between / gap.clamp(min=1e-3)
        scale = target / length.clamp(min=tiny)
    along = (z * axis).sum(-1, keepdim=True)
    turned = z - 2 * along * axis + 2 * (z * from_).sum(-1, keepdim=True) * to
    out = torch.where(usable, scale * turned, z)
    # Forward it is the quantized vector to the last bit.
    return out + (quantized - out).detach()
