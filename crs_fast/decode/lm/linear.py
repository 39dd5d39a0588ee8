"""Linear layers on the few rows of a beam step."""

from __future__ import annotations

import torch

# From 8 to 63 rows MKL computes W @ x.T about twice as fast as x @ W.T (2.8 GHz Xeon, float32, 576
# to 50,000 outputs). At 2 rows and from 64 rows on it is as fast or slower.
_FEWEST_ROWS, _TOO_MANY_ROWS = 8, 64
# With fewer weights it is slower (torch 2.13: at 576 x 576 and 8 rows by 2.4 times).
_FEWEST_WEIGHTS = 1 << 19


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I] @ weight [O, I].T + bias [O]: [..., O]."""
    rows = x.numel() // x.shape[-1]
    is_skinny = _FEWEST_ROWS <= rows < _TOO_MANY_ROWS and weight.numel() >= _FEWEST_WEIGHTS
    if not is_skinny or x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.nn.functional.linear(x, weight, bias)
    out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)


def is_plain(layer: torch.nn.Module) -> bool:
    """Whether `layer` is a linear layer and nothing more: no hooks, no forward of its own."""
    return type(layer) is torch.nn.Linear and not (
        layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    )


class SkinnyLinear(torch.nn.Linear):
    """A stand-in for an `nn.Linear` that shares its parameters."""

    @classmethod
    def of(cls, layer: torch.nn.Module) -> SkinnyLinear:
        """Made without `__init__`, which takes longer than the rest of a tree view together."""
        stand_in = cls.__new__(cls)
        stand_in.__dict__.update(layer.__dict__)
        return stand_in

    @staticmethod
    def can_replace(layer: torch.nn.Module) -> bool:
        """Whether `layer` is plain and the stand-in is faster."""
        return (
            is_plain(layer)
            and layer.weight.device.type == "cpu"
            and layer.weight.dtype == torch.float32
            and layer.weight.numel() >= _FEWEST_WEIGHTS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
