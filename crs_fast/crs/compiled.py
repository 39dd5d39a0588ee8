"""Decoder layers compiled one by one (`torch.compile`) while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BACKEND = "inductor"


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Inside, each decoder layer of `model` runs compiled, with the same weights under the same
    names. All layers of a kind share one compilation, whatever the batch and its length (a batch
    of one may cost a second).

    Raises:
        ValueError: the model has no decoder layers of transformers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError("train: compile_layers needs decoder layers of transformers (found none)")
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
