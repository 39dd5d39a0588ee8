"""What beams need of a language model: hidden states of columns and of tree slots, and its head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from .head import LmHead
from .regions import enough_cases
from .tree_view import TreeState, tree_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


class TreeModel:
    """A decoder-only language model, unchanged, and the view of it that decodes token trees.

    Args:
        model: any `AutoModelForCausalLM` that the capability probe accepts.
        attention: "tree" sends slots through tree attention, "mask" through the model's own
            attention with a 4-D mask.
        compiled: run decoder layers compiled (`regions.py`); attention must be "tree".
    """

    def __init__(
        self, model: PreTrainedModel, attention: str = "tree", compiled: bool = False
    ) -> None:
        self.model = model
        # Up to transformers 4.57 some models name themselves, head and all.
        self.decoder = model.get_decoder().base_model
        self.head = LmHead(model)
        if compiled and attention != "tree":
            raise ValueError("compiled layers must be of a model that takes tree attention")
        self.compiled = compiled
        self.view = tree_view(self.decoder, compiled) if attention == "tree" else None

    def columns(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Append columns ids [B, n] to the cache; mask [B, S] over all columns, None where causal
        attention is enough: hidden states [B, n, H]."""
        if self.view is not None and mask is None and cache.get_seq_length() == 0:
            return self._hidden(self.view, ids, None, positions, cache)
        return self._hidden(self.decoder, ids, mask, positions, cache)

    def slots(
        self, ids: torch.Tensor, positions: torch.Tensor, tree: TreeState, cache: Cache
    ) -> torch.Tensor:
        """Append tree slots ids [B, M] to the cache: hidden states [B, M, H]."""
        if self.view is None:
            mask = _dense_mask(tree, cache.get_seq_length() + ids.shape[1], self._dtype())
            return self._hidden(self.decoder, ids, mask, positions, cache)
        # A 4-D mask is used as it is, so an empty one keeps the model from building its own.
        nothing = torch.empty(1, 1, 1, 0, dtype=self._dtype(), device=ids.device)
        return self._hidden(self.view, ids, nothing, positions, cache, crs_fast_tree=tree)

    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _hidden(
        self,
        decoder: Any,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Cache,
        **kwargs: Any,
    ) -> torch.Tensor:
        with enough_cases() if self.compiled else nullcontext():
            return decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            ).last_hidden_state


def _dense_mask(tree: TreeState, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a slot sees a column and the lowest number elsewhere, [B, 1, M, S]."""
    batch, beams, _ = tree.ancestors.shape
    visible = torch.zeros(batch, beams, columns, dtype=torch.bool, device=tree.ancestors.device)
    prompt = True if tree.prompt_mask is None else tree.prompt_mask[:, None]
    visible[..., : tree.prompt_length] = prompt
    visible.scatter_(2, tree.ancestors + tree.prompt_length, True)
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
