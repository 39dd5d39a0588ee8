"""A model's decoder with tree attention in place of its own, sharing every weight."""

from __future__ import annotations

import copy
import sys
from itertools import count
from typing import Any

import torch

from .compiled_layers import CompiledLayer, CompiledPrompt, CompiledStep, is_layer
from .joint_linear import PROJECTIONS, joint_layers
from .linear import SkinnyLinear
from .stand_in import twin_of
from .tree_state import TreeState

NAME = "crs_fast_tree"
# Arguments of attention functions that change nothing about what is attended to. A sliding window
# is one of them because the tree is not used where prompt and SID are longer than the window.
_HARMLESS = {
    "cache_position", "dropout", "head_mask", "is_causal", "layer_idx", "output_attentions",
    "output_hidden_states", "position_ids", "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


def tree_view(decoder: torch.nn.Module, compiled: bool = False) -> torch.nn.Module:
    """A second tree of modules over the same parameters, whose attention takes a `TreeState`.

    Modules that hold a config get a twin with a copy of the config that names our attention.
    Modules with buffers, which a forward pass may assign, and those in training mode get a twin in
    eval mode, and so do the modules above all of these. So the model and its config are never
    changed, and threads can share a model. Projections that read the same input may become one
    product (`joint_linear`). Takes about 0.1 ms per layer (Llama, CPU). A view kept
    from the call before would save nothing: to see whether it still fits the model takes as long.

    Args:
        compiled: make each decoder layer a `CompiledLayer`.
    """
    _register()
    layer_numbers = count()
    modules: dict[int, torch.nn.Module] = {}
    configs: dict[int, Any] = {}

    def config_of(config: Any) -> Any:
        if id(config) not in configs:
            config_copy = configs[id(config)] = copy.copy(config)
            config_copy.__dict__["crs_fast_own_attention"] = config._attn_implementation or "eager"
            # Past the property, whose setter would reach into sub-configs, which are shared.
            config_copy.__dict__["_attn_implementation_internal"] = NAME
        return configs[id(config)]

    def view(module: torch.nn.Module) -> torch.nn.Module:
        if id(module) not in modules:
            modules[id(module)] = _view(module)
        return modules[id(module)]

    def _view(module: torch.nn.Module) -> torch.nn.Module:
        if SkinnyLinear.can_replace(module):
            return SkinnyLinear.of(module)
        children = {
            name: None if child is None else view(child) for name, child in module._modules.items()
        }
        if PROJECTIONS.now:
            children |= joint_layers(module)
        config = module.__dict__.get("config")
        names_attention = hasattr(config, "_attn_implementation_internal")
        if not (names_attention or module.training or module._buffers) and all(
            child is module._modules[name] for name, child in children.items()
        ):
            return module
        twin = twin_of(module, children)
        if names_attention:
            twin.__dict__["config"] = config_of(config)
        if compiled and is_layer(module):
            return CompiledLayer(twin, next(layer_numbers))
        return twin

    decoder_view = view(decoder)
    if compiled and next(layer_numbers) == 0:
        raise ValueError("compiled layers must be decoder layers of transformers (found none)")
    return decoder_view


def tree_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    crs_fast_tree: TreeState | CompiledStep | CompiledPrompt | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function registered with transformers as "crs_fast_tree".

    Without a tree it calls the model's own attention. With one, the tree says what is masked.

    Raises:
        ValueError: the model asks for something tree attention doesn't know (sinks, biases).
    """
    if crs_fast_tree is None or isinstance(crs_fast_tree, CompiledPrompt):
        if crs_fast_tree is not None:
            crs_fast_tree.keys, crs_fast_tree.values = key, value
        return _own_attention(module)(
            module, query, key, value, attention_mask, scaling=scaling,
            **({} if softcap is None else {"softcap": softcap}), **kwargs,
        )  # fmt: skip
    unknown = [name for name, v in kwargs.items() if v is not None and name not in _HARMLESS]
    if unknown:
        raise ValueError(f"tree attention: arguments must be known (got {sorted(unknown)})")
    return crs_fast_tree.attend(query, key, value, scaling, softcap), None


def _own_name(config: Any) -> str:
    return getattr(config, "crs_fast_own_attention", None) or "sdpa"


def _own_attention(module: torch.nn.Module) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _own_name(getattr(module, "config", None))
    if name == "eager":  # not registered: each model file has its own
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS[name]


def _own_mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask that the model's own attention wants. Without a registered mask function, the 2-D
    mask would silently become None.

    SDPA wants no mask for a whole causal prompt. While a CUDA graph is recorded, transformers would
    build one all the same, and the recorded kernel would not be the one that was warmed up.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if _own_name(config) == "sdpa" and _whole_and_causal(**kwargs):
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[_own_name(config)](*args, config=config, **kwargs)


def _whole_and_causal(
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: int | torch.Tensor = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = False,
    **kwargs: Any,
) -> bool:
    """Whether a mask function's arguments (transformers 5) ask for a causal mask over nothing but
    the queries themselves."""
    fits_window = local_size is None or kv_length < local_size
    is_whole = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    return allow_is_causal_skip and attention_mask is None and fits_window and is_whole


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, tree_attention_forward)
    AttentionMaskInterface.register(NAME, _own_mask)
