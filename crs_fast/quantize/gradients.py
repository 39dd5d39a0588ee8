"""Passes gradients through a quantizer, whose own gradient is zero almost everywhere."""

from __future__ import annotations

import torch

GRADIENTS = ("straight_through", "rotation")


def straight_through(z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Returns `quantized`; the gradient goes to `z` unchanged. Both are [n, D]."""
    return z + (quantized - z).detach()


def rotation(z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Returns `quantized`; the gradient passes through the rotation and scaling from z to it.

        R = I - 2 s s^T + 2 q' z'^T,  s = (z' + q') / |z' + q'|,  z' = z / |z|, q' = q / |q|
        out = |q| / |z| * R z                         # R and the factor count as constants

    Where no such rotation exists (a zero vector, or two opposite ones), the gradient passes
    unchanged, as in `straight_through`.

    Args:
        z: float [n, D], with gradients.
        quantized: float [n, D].

    Source: Fifty et al. 2024 (arXiv 2410.06424), eq. 4 and section 4.2.
    """
    with torch.no_grad():
        z_norm, q_norm = z.norm(dim=-1, keepdim=True), quantized.norm(dim=-1, keepdim=True)
        tiny = torch.finfo(z.dtype).tiny ** 0.5
        z_unit, q_unit = z / z_norm.clamp(min=tiny), quantized / q_norm.clamp(min=tiny)
        unit_sum = z_unit + q_unit
        sum_norm = unit_sum.norm(dim=-1, keepdim=True)
        usable = (z_norm > tiny) & (q_norm > tiny) & (sum_norm > 1e-3)
        axis = unit_sum / sum_norm.clamp(min=1e-3)  # s
        scale = q_norm / z_norm.clamp(min=tiny)
    along_axis = (z * axis).sum(-1, keepdim=True)
    rotated = z - 2 * along_axis * axis + 2 * (z * z_unit).sum(-1, keepdim=True) * q_unit
    out = torch.where(usable, scale * rotated, z)
    # The value is `quantized` to the last bit; only the gradient is that of `out`.
    return out + (quantized - out).detach()
