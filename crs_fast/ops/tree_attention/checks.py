"""The checks of `tree_attention`'s arguments, for it and for `torch.ops.crs_fast`."""

from __future__ import annotations

import torch

from ..checked import CheckedContents
from ..dtypes import NATIVE_FLOATS, name_of

_FLOATS = (*NATIVE_FLOATS, torch.float64)
# All layers of a model take the same ancestors.
_ANCESTORS = CheckedContents()


def check(query, key, value, ancestors, prompt_length, prompt_mask, softcap) -> None:
    _check_tensor("query", query, query, _FLOATS, "[B, H, M, D]")
    batch, heads, beams, width = query.shape
    _check_tensor("key", key, query, (query.dtype,), "[B, G, S, D]", {0: batch, 3: width})
    _, groups, positions, _ = key.shape
    same = {0: batch, 1: groups, 2: positions}
    _check_tensor("value", value, query, _FLOATS, "[B, G, S, E]", same)
    same = {0: batch, 1: beams}
    _check_tensor("ancestors", ancestors, query, (torch.int64,), "[B, M, T]", same)
    if prompt_mask is not None:
        same = {0: batch, 1: prompt_length}
        _check_tensor("prompt_mask", prompt_mask, query, (torch.bool,), "[B, P]", same)
    if groups == 0 or heads % groups:
        raise ValueError(
            f"tree_attention: query heads must be a multiple of key heads, {groups} (got {heads})"
        )
    if not hasattr(prompt_length, "__index__") or not 0 <= prompt_length <= positions:
        raise ValueError(
            f"tree_attention: prompt_length must lie in 0 .. {positions}, the keys' positions "
            f"(got {prompt_length})"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"tree_attention: softcap must be above 0 (got {softcap})")
    slots = positions - prompt_length
    if ancestors.numel() and slots == 0:
        raise ValueError(
            "tree_attention: key must hold slots behind the prompt for ancestors to name "
            f"(got {positions} positions, all of the prompt)"
        )
    # On a GPU nobody waits to hear of it: the kernel reads another slot instead.
    if torch.compiler.is_compiling() or ancestors.device.type != "cpu":
        return

    def check_slots() -> None:
        if not ancestors.numel():
            return
        lowest, highest = (int(end) for end in ancestors.aminmax())
        if not 0 <= lowest <= highest < slots:
            raise ValueError(
                f"tree_attention: ancestors must lie in 0 .. {slots - 1}, the slots behind the "
                f"prompt (got {lowest} .. {highest})"
            )

    _ANCESTORS.require((ancestors,), (slots,), check_slots)


def _check_tensor(
    name: str,
    tensor: torch.Tensor,
    query: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    axes: str,
    sizes: dict[int, int] | None = None,
) -> None:
    """`sizes`: those of the axes that other arguments fix."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"tree_attention: {name} must be a torch tensor (got {type(tensor).__name__})"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"tree_attention: {name} must be a dense tensor (got {tensor.layout})")
    if tensor.dtype not in dtypes:
        expected = ", ".join(map(name_of, dtypes))
        raise ValueError(f"tree_attention: {name} must be {expected} (got {name_of(tensor.dtype)})")
    shape, sizes = tensor.shape, sizes or {}
    if len(shape) != axes.count(",") + 1 or any(shape[i] != n for i, n in sizes.items()):
        names = axes[1:-1].split(", ")
        fixed = ", ".join(f"{names[i]} = {n}" for i, n in sizes.items())
        expected = f"{axes} with {fixed}" if fixed else axes
        raise ValueError(f"tree_attention: {name} must have shape {expected} (got {list(shape)})")
    if tensor.device != query.device:
        raise ValueError(
            f"tree_attention: {name} must be on the query's device {query.device} "
            f"(got {tensor.device})"
        )
