"""Low-rank adapters by PEFT: put on, and merged again into plain weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crs_fast.crs.training.embedding_init import embedding_weights


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


def in_four_bits(model: Any) -> bool:
    """Whether bitsandbytes holds some of the model's weights in 4 bits."""
    return any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())


def merge_lora(model: Any) -> Any:
    """The model with its adapter's weights added to its own; one without an adapter as it is.

    4-bit weights are unpacked first, to the dtype they compute in: those are the weights that the
    adapter was trained on. The original ones are not, and packing the sum again would round away
    what the adapter has learned.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    return (_unpacked(model) if in_four_bits(model) else model).merge_and_unload()


def _unpacked(model: Any) -> Any:
    """The same adapter on unpacked weights, put on afresh: PEFT's 4-bit layers need packed ones."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = model.peft_config["default"]
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    again = get_peft_model(model.unload().dequantize(), config)
    set_peft_model_state_dict(again, state)
    return again
