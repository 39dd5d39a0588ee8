"""A prompt's keys and values, stored once and grown as decoding goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prompt:
    """A batch of left-padded token sequences and the model's cache of them.

    Columns may be valid in some rows only: `mask` says where, and positions count valid columns,
    so rows of a batch can take different turns.

    Args:
        model: any decoder-only `AutoModelForCausalLM`.
        input_ids: int64 [B, P].
        attention_mask: int or bool [B, P], 1 at real tokens; None means all ones. Right padding is
            moved to the left.

    Raises:
        ValueError: shapes disagree, or a row has no token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        from transformers import DynamicCache

        if input_ids.ndim != 2 or input_ids.shape[1] < 1:
            raise ValueError(
                f"input_ids must be [B, P] with P at least 1 (got {tuple(input_ids.shape)})"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)} "
                f"(got {tuple(attention_mask.shape)})"
            )
        ids, mask = _pad_left(input_ids, attention_mask.bool())
        self.model = model
        self.ids = ids.new_empty(ids.shape[0], 0)  # [B, S], what the cache holds
        self.mask = mask.new_empty(ids.shape[0], 0)  # bool [B, S]
        # No config: layers with a sliding window keep everything too, so tree slots never push
        # the prompt out.
        self.cache = DynamicCache()
        self.logits = self.append(ids, mask)

    @property
    def length(self) -> int:
        """Columns of the sequence, all of them cached."""
        return self.ids.shape[1]

    def append(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Feed columns ids [B, n], valid where mask [B, n] says (default everywhere; the last
        column of a row counts as its last token): logits after the last column, [B, V]."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        self.ids = torch.cat([self.ids, ids], 1)
        self.mask = torch.cat([self.mask, mask], 1)
        positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._forward(ids, self.mask.long(), positions, logits_to_keep=1)
        self.logits = output[:, -1]
        return self.logits

    def grow(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Feed tree slots ids [B, m] that see what the boolean mask [B, m, S + slots] says; they
        join the cache but not the sequence (`crop` drops them). Logits [B, m, V]."""
        dtype = self.model.dtype
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        bias = bias.masked_fill_(~mask, torch.finfo(dtype).min)
        return self._forward(ids, bias[:, None], positions)

    def crop(self, length: int | None = None) -> None:
        """Forget tree slots and, where `length` is given, columns from there on."""
        if length is not None:
            self.ids, self.mask = self.ids[:, :length], self.mask[:, :length]
        surplus = self.cache.get_seq_length() - self.length
        if surplus:
            self.cache.crop(-surplus)

    def select(self, rows: list[int]) -> Prompt:
        """A prompt of some rows; the cache is copied unless all rows are taken."""
        if rows == list(range(self.ids.shape[0])):
            return self
        chosen = copy.copy(self)
        index = torch.tensor(rows, device=self.ids.device)
        chosen.ids, chosen.mask = self.ids[index], self.mask[index]
        chosen.logits = self.logits[index]
        chosen.cache = copy.deepcopy(self.cache)
        chosen.cache.batch_select_indices(index)
        return chosen

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **kwargs,
        ).logits


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token sequences of unequal length as one batch: ids int64 [B, P] and mask bool [B, P]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def _pad_left(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move each row's real tokens to its end, in order."""
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask must mark at least one token a row (row {row} has none)")
    if bool(mask[:, -1].all()):
        return ids, mask
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)
