"""Low-rank adapters by PEFT, put on a model; `backbones.merge_lora` takes them off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crs_fast.crs.backbones import embedding_weights


def add_lora(
    model: Any,
    tokens: list[int],
    rank: int,
    alpha: int = 32,
    dropout: float = 0.05,
    whole: Sequence[str] = (),
) -> Any:
    """A PEFT model with LoRA on every linear layer but the head, in which of the embedding (and
    an untied head) only the rows of `tokens` train.

    Args:
        model: a causal language model, or a module with one inside.
        whole: names of modules whose own weights train instead.

    Raises:
        ImportError: peft is missing (`crs_fast[train]`).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError("add_lora: needs peft; `pip install crs_fast[train]`") from None
    config = LoraConfig(
        # Other modules generate nothing, which the class for this task asks of a model.
        task_type="CAUSAL_LM" if hasattr(model, "generate") else None,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=list(whole) or None,
        trainable_token_indices={name: tokens for name in embedding_weights(model)},
    )
    return get_peft_model(model, config)
