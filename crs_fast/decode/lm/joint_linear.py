"""Linear layers that read the same input, computed as one product where their weights lie next to
each other in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from crs_fast.ops.designs import Choice

from .linear import is_plain, linear

# One product for all layers of a group, or one for each.
PROJECTIONS = Choice({"apart": False, "together": True})
# What decoders call the layers that read the same input.
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Group:
    """The layers of one group. Whichever is called first computes them all; the others take their
    part, if they are given the same input."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, sizes: Sequence[int]
    ) -> None:
        self.weight, self.bias, self.sizes = weight, bias, list(sizes)  # [sum of sizes, I]
        self.input: torch.Tensor | None = None
        self.outputs: dict[int, torch.Tensor] = {}

    def output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        if self.input is not x or index not in self.outputs:
            parts = linear(x, self.weight, self.bias).split(self.sizes, -1)
            self.input, self.outputs = x, dict(enumerate(parts))
        part = self.outputs.pop(index)
        if not self.outputs:
            self.input = None
        return part


class JointLinear(torch.nn.Module):
    """A stand-in for one layer of a group."""

    def __init__(self, group: _Group, index: int) -> None:
        super().__init__()
        self.group, self.index = group, index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.output(x, self.index)


def joint_layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Stand-ins, by name, for those children of `module` that can be computed together."""
    stand_ins: dict[str, torch.nn.Module] = {}
    for names, layers in _groups(module):
        weight = _joined([layer.weight for layer in layers])
        bias = _joined([layer.bias for layer in layers])
        if weight is not None and (bias is not None) == (layers[0].bias is not None):
            group = _Group(weight, bias, [layer.out_features for layer in layers])
            stand_ins |= {name: JointLinear(group, i) for i, name in enumerate(names)}
    return stand_ins


@torch.no_grad()
def lay_together(model: torch.nn.Module) -> None:
    """Move the weights of each group next to each other, one group after the other. Parameters and
    their values stay, but not their addresses: nobody else may hold those (a recorded graph, an
    optimizer with flat weights, another process)."""
    for module in model.modules():
        for _, layers in _groups(module):
            for name in ("weight", "bias"):
                tensors = [getattr(layer, name) for layer in layers]
                if tensors[0] is not None and _joined(tensors) is None:
                    sizes = [len(tensor) for tensor in tensors]
                    parts = torch.cat([tensor.data for tensor in tensors]).split(sizes)
                    for tensor, part in zip(tensors, parts, strict=True):
                        tensor.data = part


def _groups(module: torch.nn.Module) -> Iterator[tuple[Sequence[str], list[Any]]]:
    """The names and layers of each group that `module` has: plain layers of one kind."""
    for names in _GROUPS:
        layers: list[Any] = [module._modules.get(name) for name in names]
        if not all(layer is not None and is_plain(layer) for layer in layers):
            continue
        kinds = {
            (layer.in_features, layer.weight.dtype, layer.weight.device, layer.bias is None)
            for layer in layers
        }
        if len(kinds) == 1:
            yield names, layers


def _joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Tensors that follow each other in one storage as one tensor over the same memory; None where
    they don't."""
    first, rows = tensors[0], 0
    end: int | torch.SymInt = 0
    for tensor in tensors:
        if first is None or tensor is None or not tensor.is_contiguous():
            return None
        end = end or first.storage_offset()
        if tensor.untyped_storage()._cdata != first.untyped_storage()._cdata:
            return None
        if tensor.storage_offset() != end:
            return None
        end, rows = end + tensor.numel(), rows + len(tensor)
    assert first is not None
    return first.as_strided((rows, *first.shape[1:]), first.stride())
