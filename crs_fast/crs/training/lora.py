"""Adds PEFT's low-rank adapters to a model, and merges them into it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from crs_fast.crs.backbones import embedding_weights, merge_lora

__all__ = ["add_lora", "merge_lora"]

logger = logging.getLogger(__name__)


def add_lora(
    model: Any,
    tokens: list[int],
    rank: int,
    alpha: int = 32,
    dropout: float = 0.05,
    whole: Sequence[str] = (),
) -> Any:
    """A PEFT model with LoRA on every linear layer but the head. Of the embedding (and an untied
    head) only the rows of `tokens` train.

    Two kinds of layer are an exception. Experts that hold their weights in one parameter for all
    experts (Mixtral and Qwen3-MoE in transformers 5) get LoRA without dropout, with a warning. Of
    a Mamba mixer only the input projection gets it: kernels read the weights of the others past
    their layers, so that an adapter there would train without effect.

    Args:
        model: a causal language model, or a module with one inside.
        dropout: on what goes into the adapters, while they train.
        whole: names of modules whose own weights train instead.

    Raises:
        ImportError: peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise ImportError("add_lora: needs peft; `pip install peft`") from None
    config = LoraConfig(
        # Other modules generate nothing, which the class for this task asks of a model.
        task_type="CAUSAL_LM" if hasattr(model, "generate") else None,
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        exclude_modules=_past_reach(model) or None,
        modules_to_save=list(whole) or None,
        trainable_token_indices={name: tokens for name in embedding_weights(model)},
    )
    adapted = get_peft_model(model, config)
    # Set here and not in the config, which would refuse a model for one layer that can't.
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    able = [layer for layer in layers if not hasattr(layer, "parameter_name")]
    for layer in able if dropout else ():
        for name in layer.lora_dropout:
            layer.lora_dropout[name] = torch.nn.Dropout(dropout)
    if len(able) == len(layers):
        config.lora_dropout = dropout
    elif dropout:
        logger.warning(
            "add_lora: the experts' adapters train without dropout, which PEFT lacks for weights "
            "that are one parameter; --lora-dropout 0 (lora_dropout=0) turns it off everywhere"
        )
    return adapted


def _past_reach(model: torch.nn.Module) -> list[str]:
    """Names of the layers of Mamba mixers whose weights are used without a call of the layer; the
    mixers are known by their parameters, for their classes have many names."""
    return [
        f"{name}.{layer}"
        for name, module in model.named_modules()
        if hasattr(module, "A_log") and hasattr(module, "D")
        for layer in ("x_proj", "dt_proj", "out_proj")
        if hasattr(module, layer)
    ]
