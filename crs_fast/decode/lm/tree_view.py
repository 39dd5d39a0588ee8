"""A model's decoder with tree attention in place of its own, sharing every weight."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from crs_fast.ops.tree_attention import tree_attention

from .linear import SkinnyLinear
from .regions import CompiledPrompt, CompiledStep, Region, is_layer

NAME = "crs_fast_tree"
# Arguments of attention functions that change nothing about what is attended to. A sliding window
# is one of them because the tree is not used where prompt and SID are longer than the window.
_HARMLESS = {
    "cache_position", "dropout", "head_mask", "is_causal", "layer_idx", "output_attentions",
    "output_hidden_states", "position_ids", "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class TreeState:
    """What the slots of one step see; travels through the model as the argument `crs_fast_tree`.

    ancestors int64 [B, M, T]: slots each beam sees, its own among them
    prompt_length: columns of the prompt
    prompt_mask bool [B, P]: which of them hold a token; None means all
    """

    ancestors: torch.Tensor
    prompt_length: int
    prompt_mask: torch.Tensor | None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Over all columns of a layer's cache."""
        return tree_attention(
            query, key, value, self.ancestors, self.prompt_length, self.prompt_mask, scale, softcap
        )


def tree_view(decoder: torch.nn.Module, compiled: bool = False) -> torch.nn.Module:
    """A second module tree over the same parameters whose attention takes a `TreeState`.

    Modules that hold a config are copied shallowly with a config of their own that names our
    attention, and modules above them with their children replaced. So the model and its config
    are never changed, and threads can share a model. Takes about 0.1 ms a layer (Llama, CPU), as
    long as it would take to see whether a view kept from the call before still fits the model.

    Args:
        compiled: each decoder layer is a `Region`.
    """
    _register()
    regions = count()
    modules: dict[int, torch.nn.Module] = {}
    configs: dict[int, Any] = {}

    def config_of(config: Any) -> Any:
        if id(config) not in configs:
            ours = configs[id(config)] = copy.copy(config)
            ours.__dict__["crs_fast_own_attention"] = config._attn_implementation or "eager"
            # Past the property, whose setter would reach into sub-configs, which are shared.
            ours.__dict__["_attn_implementation_internal"] = NAME
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
        config = module.__dict__.get("config")
        attends = hasattr(config, "_attn_implementation_internal")
        if not attends and all(child is module._modules[name] for name, child in children.items()):
            return module
        ours = copy.copy(module)
        ours.__dict__["_modules"] = children
        if attends:
            ours.__dict__["config"] = config_of(config)
        if compiled and is_layer(module):
            return Region(ours, next(regions))
        return ours

    whole = view(decoder)
    if compiled and next(regions) == 0:
        raise ValueError("compiled layers must be decoder layers of transformers (found none)")
    return whole


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

    Without a tree it is the model's own. With one, the mask is the tree's.

    Raises:
        ValueError: the model asks for something tree attention doesn't know (sinks, biases).
    """
    if crs_fast_tree is None or isinstance(crs_fast_tree, CompiledPrompt):
        if crs_fast_tree is not None:
            crs_fast_tree.keys, crs_fast_tree.values = key, value
        return _own(module)(
            module, query, key, value, attention_mask, scaling=scaling,
            **({} if softcap is None else {"softcap": softcap}), **kwargs,
        )  # fmt: skip
    unknown = [name for name, v in kwargs.items() if v is not None and name not in _HARMLESS]
    if unknown:
        raise ValueError(f"tree attention: arguments must be known (got {sorted(unknown)})")
    return crs_fast_tree.attend(query, key, value, scaling, softcap), None


def _own_name(config: Any) -> str:
    return getattr(config, "crs_fast_own_attention", None) or "sdpa"


def _own(module: torch.nn.Module) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _own_name(getattr(module, "config", None))
    if name == "eager":  # not registered: each model file has its own
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS[name]


def _own_mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask that the model's own attention wants. Without a registered mask function, the 2-D
    mask would silently become None.

    SDPA wants none for a whole causal prompt; while a CUDA graph is recorded transformers would
    build one all the same, and another kernel would be recorded than was warmed up.
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
    inside = local_size is None or kv_length < local_size
    whole = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    return allow_is_causal_skip and attention_mask is None and inside and whole


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, tree_attention_forward)
    AttentionMaskInterface.register(NAME, _own_mask)
