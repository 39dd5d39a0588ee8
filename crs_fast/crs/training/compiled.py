"""Decoder layers compiled one by one (`torch.compile`) while a model trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crs_fast.decode.lm.compiled_layers import enough_cases, is_layer

BACKEND = "inductor"


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """
    Raises:
        ValueError: the model has none of transformers' kind.
    """
    layers = [module for module in model.modules() if is_layer(module)]
    if not layers:
        raise ValueError(
            "train: model must have decoder layers of transformers with compile_layers "
            f"(got none in {type(model).__name__})"
        )
    return layers


def compile_layers(layers: Sequence[Any]) -> None:
    """From now on each of the layers runs compiled, with the same weights under the same names. All
    layers of a kind share one compilation, whatever the batch and its length (a batch of one may
    cost a second)."""
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)


@contextmanager
def compiled(layers: Sequence[Any]) -> Iterator[None]:
    """Inside, each of the layers runs compiled."""
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
