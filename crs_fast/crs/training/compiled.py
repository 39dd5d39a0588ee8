"""Compiles a model's decoder layers one by one (`torch.compile`) for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crs_fast.decode.lm.compiled_layers import enough_cases, is_layer

BACKEND = "inductor"


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The model's decoder layers.

    Raises:
        ValueError: the model has no decoder layers of transformers.
    """
    layers = [module for module in model.modules() if is_layer(module)]
    if not layers:
        raise ValueError(
            "train: model must have decoder layers of transformers with compile_layers "
            f"(got none in {type(model).__name__})"
        )
    return layers


def compile_layers(layers: Sequence[Any]) -> None:
    """From now on run each of the layers compiled; weights and their names stay. Layers of one
    class share one compilation for all batch sizes and lengths (a batch of one may need a second
    compilation)."""
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)


@contextmanager
def compiled(layers: Sequence[Any]) -> Iterator[None]:
    """Inside this context, each of the layers runs compiled."""
    if not layers:
        yield
        return
    compile_layers(layers)
    try:
        with enough_cases():
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
