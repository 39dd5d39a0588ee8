"""Decoder layers compiled one by one (`torch.compile`), the cache outside of what is compiled.

Compiled with its cache, each layer would be a case of its own (dynamo takes the layer's index for
a constant), and past the recompilation limit the rest would silently run eagerly. So a compiled
layer gets no cache. While it reads a prompt, its attention leaves keys and values in a
`CompiledPrompt`. While it reads a tree step, one op that the compiler can't look into writes and
reads the cache, which it finds by the number in a `CompiledStep`. All layers of a kind share one
compilation for prompts and one for tree steps, whatever the prompt's length. A layer that can't be
compiled whole is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import torch

from crs_fast.ops.tree_attention import fake_tree_attention

from .tree_state import TreeState

# How many kinds of calls and shapes a layer may be compiled for. Dynamo's own limit is 8.
_CASES = 64

LIBRARY = torch.library.Library("crs_fast", "FRAGMENT")
LIBRARY.define(
    "cached_tree_attention(Tensor query, Tensor key, Tensor value, Tensor step, float? scale, "
    "float? softcap) -> Tensor"
)


@dataclass
class CompiledPrompt:
    """Where a layer's attention leaves a prompt's keys and values, [B, G, P, D]."""

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass
class CompiledStep:
    """The number under which a `_LayerStep` stands in `_steps`, int64 [] on the CPU: a value that
    no compilation depends on."""

    number: torch.Tensor

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention over the layer's whole cache, after `key` and `value` are written to its
        end."""
        return torch.ops.crs_fast.cached_tree_attention(
            query, key, value, self.number, scale, softcap
        )


@dataclass
class _LayerStep:
    """One layer's part of one tree step: what the new tokens see, and the cache's keys and values,
    of which the last positions are still to be written."""

    tree: TreeState
    keys: torch.Tensor
    values: torch.Tensor


# Each is here while its layer runs, under a number that nothing else gets: threads share no step.
_steps: dict[int, _LayerStep] = {}
_numbers = count()


class CompiledLayer(torch.nn.Module):
    """A decoder layer that runs compiled.

    Args:
        layer: a decoder layer of a tree view.
        index: of the layer's part of the cache.
    """

    def __init__(self, layer: torch.nn.Module, index: int) -> None:
        super().__init__()
        if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
            raise ValueError("compiled layers must have no hooks")
        self.layer, self.index = layer, index
        self.run = _compiled(type(layer).forward)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # decoders ask their layers for attributes, such as attention_type
            return getattr(super().__getattr__("layer"), name)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        past_key_values: Any,
        crs_fast_tree: TreeState | None = None,
        **kwargs: Any,
    ) -> Any:
        def run(states: CompiledPrompt | CompiledStep) -> Any:
            return self.run(
                self.layer, hidden_states, *args, past_key_values=None, crs_fast_tree=states,
                **kwargs,
            )  # fmt: skip

        if crs_fast_tree is None:
            prompt = CompiledPrompt()
            out = run(prompt)
            past_key_values.update(prompt.keys, prompt.values, self.index)
            return out
        cached, number = past_key_values.layers[self.index], next(_numbers)
        keys, values = cached.extended(hidden_states.shape[1], cached.keys, cached.values)
        _steps[number] = _LayerStep(crs_fast_tree, keys, values)
        try:
            return run(CompiledStep(torch.tensor(number, device="cpu")))
        finally:
            del _steps[number]


def is_layer(module: torch.nn.Module) -> bool:
    """Whether `module` is a decoder layer of transformers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)


@contextmanager
def enough_cases() -> Iterator[None]:
    """Inside, dynamo may compile a layer for as many kinds of calls as we need."""
    import torch._dynamo.config as config

    with config.patch(recompile_limit=max(_CASES, config.recompile_limit)):
        yield


@cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, fullgraph=True)


def _attend(query, key, value, number, scale, softcap):
    step = _steps[int(number)]
    step.keys[:, :, -key.shape[2] :].copy_(key)
    step.values[:, :, -key.shape[2] :].copy_(value)
    return step.tree.attend(query, step.keys, step.values, scale, softcap)


LIBRARY.impl("cached_tree_attention", _attend, "CPU")
LIBRARY.impl("cached_tree_attention", _attend, "CUDA")
torch.library.register_fake("crs_fast::cached_tree_attention", fake_tree_attention, lib=LIBRARY)
