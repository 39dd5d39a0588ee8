"""What we run in place of a caller's model: the same weights, and nothing that we could change."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import torch

from crs_fast._arguments import check_kind

_LARGE = 1 << 16  # elements of a buffer


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that leave what it computes alone: `torch.compile`, DataParallel
    and DistributedDataParallel, and PEFT where its adapters act inside the model's layers.

    Raises:
        ValueError: a wrapper that has taken the weights apart (FSDP), or no model at all.
    """
    while True:
        inner = _inner(model)
        if inner is None:
            break
        model = inner
    if not hasattr(model, "config") or not isinstance(model, torch.nn.Module):
        raise ValueError(
            "recommend: model must be a Hugging Face model, or one that PEFT, torch.compile, "
            f"DataParallel or DistributedDataParallel wraps (got {type(model).__name__})"
        )
    return model


def _inner(model: Any) -> Any:
    if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(model).__mro__):
        raise ValueError(
            "recommend: model must be whole: gather the weights of FullyShardedDataParallel "
            "first, as by accelerator.unwrap_model and get_state_dict"
        )
    modules = getattr(model, "_modules", {})
    if "_orig_mod" in modules:
        return modules["_orig_mod"]
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return model.module
    if _is_peft(model) and acts_outside(model) is None:
        return model.get_base_model()
    return None


def acts_outside(model: Any) -> str | None:
    """Which adapter of PEFT acts outside of the model's layers, where only the wrapper's own
    forward applies it; None where there is none, or where it is switched off."""
    if not _is_peft(model) or "forward" in vars(model):  # `disable_adapter` replaces the forward
        return None
    config = getattr(model, "active_peft_config", None)
    kind = getattr(getattr(config, "peft_type", None), "value", "")
    if getattr(config, "is_prompt_learning", False) or kind in ("XLORA", "POLY"):
        return str(kind)
    return None


def _is_peft(model: Any) -> bool:
    # Where it was never imported, or where another thread is importing it now, nothing is of it.
    peft = sys.modules.get("peft")
    names = ("PeftModel", "PeftMixedModel")
    return isinstance(model, tuple(getattr(peft, name) for name in names if hasattr(peft, name)))


def stand_in(model: Any) -> Any:
    """A second tree of modules over the same parameters, in eval mode.

    What a forward pass assigns or writes (a dynamic RoPE's frequencies, say) stays in the
    stand-in, so the model is never changed and threads may share it. Training mode, and with it
    dropout and gradient checkpointing, is off. `generate` finds no defaults but Hugging Face's
    own, whatever the model's `generation_config` says. Takes about 5 microseconds per module.

    Raises:
        ValueError: `model` is no module of torch.
    """
    check_kind("stand_in: model", model, torch.nn.Module, "a torch.nn.Module")
    from transformers import GenerationConfig

    twins: dict[int, torch.nn.Module] = {}

    def twin(module: torch.nn.Module) -> torch.nn.Module:
        if id(module) not in twins:
            children = {
                name: None if child is None else twin(child)
                for name, child in module._modules.items()
            }
            made = twins[id(module)] = twin_of(module, children)
            if "generation_config" in made.__dict__:
                made.__dict__["generation_config"] = GenerationConfig()
        return twins[id(module)]

    return twin(model)


def twin_of(
    module: torch.nn.Module, children: dict[str, torch.nn.Module | None]
) -> torch.nn.Module:
    """`module` in eval mode with other children, sharing its parameters and large buffers."""
    made = type(module).__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = children
    made.__dict__["_parameters"] = dict(module._parameters)
    made.__dict__["_buffers"] = {name: _own(buffer) for name, buffer in module._buffers.items()}
    made.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    made.__dict__["training"] = False
    # Accelerate's hooks replace a forward by one that is bound to the module.
    for name in ("forward", "_old_forward"):
        if name in made.__dict__:
            made.__dict__[name] = _bound_to(made.__dict__[name], module, made)
    return made


def _own(buffer: torch.Tensor | None) -> torch.Tensor | None:
    """A buffer that a forward pass may write in place (a long RoPE's frequencies): a copy. Larger
    ones are masks and quantized weights, which are read alone."""
    if (
        buffer is None
        or not buffer.is_floating_point()
        or buffer.numel() > _LARGE
        or buffer.is_meta
    ):
        return buffer
    return buffer.clone()


def _bound_to(function: Any, old: torch.nn.Module, new: torch.nn.Module) -> Any:
    """`function` bound to `new` where it was bound to `old`."""
    if isinstance(function, types.MethodType) and function.__self__ is old:
        return types.MethodType(function.__func__, new)
    if isinstance(function, functools.partial) and function.args[:1] == (old,):
        return functools.partial(function.func, new, *function.args[1:], **function.keywords)
    return function


def input_device(model: Any) -> torch.device:
    """Where the model takes its inputs; offloaded weights stand elsewhere."""
    for module in (model, model.get_input_embeddings()):
        hook = vars(module).get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return (
                    torch.device("cuda", device)
                    if isinstance(device, int)
                    else torch.device(device)
                )
    return model.device
