"""What beam search needs of a language model: hidden states of a prompt and a tree, and logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from .attention_kernels import attention_of_any_shape
from .compiled_layers import enough_cases
from .head import LmHead
from .recordings import own_tensors
from .stand_in import stand_in
from .tree_state import RowState, TreeState
from .tree_view import tree_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


class TreeModel:
    """A decoder-only language model, unchanged, and the view of it that decodes token trees.

    Args:
        model: any `AutoModelForCausalLM` that the capability probe accepts, out of its wrappers
            (`unwrapped`).
        attention: "tree" computes a tree's tokens by tree attention, "mask" by the model's own
            attention with a 4-D mask.
        compiled: run decoder layers compiled (see `compiled_layers`); attention must be "tree".
        one_shape: all calls have the same shapes, as in a recorded CUDA graph; else kernels that
            must be planned for each shape are left out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: str = "tree",
        compiled: bool = False,
        one_shape: bool = False,
    ) -> None:
        if attention not in ("tree", "mask"):
            raise ValueError(f"TreeModel: attention must be 'tree' or 'mask' (got {attention!r})")
        if compiled and attention != "tree":
            raise ValueError(
                f"TreeModel: attention must be 'tree' where layers are compiled (got {attention!r})"
            )
        is_module = isinstance(model, torch.nn.Module) and hasattr(model, "get_output_embeddings")
        if not is_module or model.get_output_embeddings() is None:
            raise ValueError(
                "TreeModel: model must be a language model with a head "
                f"(got {type(model).__name__})"
            )
        self.model = model
        self.head = LmHead(model)
        self.compiled, self.one_shape = compiled, one_shape
        # Up to transformers 4.57 some models name themselves, head and all.
        decoder = model.get_decoder().base_model
        self._decoder = decoder
        self.view = tree_view(decoder, compiled) if attention == "tree" else None

    @cached_property
    def decoder(self) -> Any:
        """The decoder with its own attention."""
        return stand_in(self._decoder)

    def tensors(self) -> list[torch.Tensor]:
        """What its forward passes read: weights and buffers."""
        parts = (self.model, self.view or self.decoder, self.head.module)
        modules = [module for part in parts for module in part.modules()]
        return [tensor.detach() for module in modules for tensor in own_tensors(module)]

    def append_sequence(
        self, ids: torch.Tensor, mask: torch.Tensor | None, position_ids: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Append tokens ids [B, n] to the cached sequence. Returns hidden states [B, n, H].

        mask [B, S] says which of all cache positions, the new ones included, hold a token; None
        where causal attention is enough.
        """
        if self.view is not None and mask is None and cache.get_seq_length() == 0:
            return self._hidden(self.view, ids, None, position_ids, cache)
        return self._hidden(self.decoder, ids, mask, position_ids, cache)

    def append_tree(
        self,
        ids: torch.Tensor,
        position_ids: torch.Tensor,
        tree: TreeState | RowState,
        cache: Cache,
    ) -> torch.Tensor:
        """Append one token per beam, ids [B, M], to the cached tree, or one per row, ids [R, 1], to
        cached rows. Returns hidden states [B, M, H]."""
        if self.view is None:
            mask = tree.dense_mask(cache.get_seq_length() + ids.shape[1], self._dtype())
            return self._hidden(self.decoder, ids, mask, position_ids, cache)
        # A 4-D mask is used as it is, so an empty one keeps the model from building its own.
        empty = torch.empty(1, 1, 1, 0, dtype=self._dtype(), device=ids.device)
        return self._hidden(self.view, ids, empty, position_ids, cache, crs_fast_tree=tree)

    def _kernels(self, device: torch.device) -> AbstractContextManager[None]:
        """Inside, attention runs by the kernels that suit the calls' shapes."""
        any_shape = device.type == "cuda" and not self.one_shape
        return attention_of_any_shape() if any_shape else nullcontext()

    def _dtype(self) -> torch.dtype:
        return next(self._decoder.parameters()).dtype

    def _hidden(
        self,
        decoder: Any,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Cache,
        **kwargs: Any,
    ) -> torch.Tensor:
        with ExitStack() as contexts:
            if self.compiled:
                contexts.enter_context(enough_cases())
            contexts.enter_context(self._kernels(ids.device))
            return decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            ).last_hidden_state
