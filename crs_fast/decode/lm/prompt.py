"""A prompt's keys and values, stored once and grown as decoding goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .tree_model import TreeModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tree_view import TreeState


class Prompt:
    """A batch of token sequences and the model's cache of them.

    Prompts of unequal length are padded on the right, where causal attention needs no mask to
    ignore it. Columns may be valid in some rows only: `mask` says where, and positions count valid
    columns, so rows of a batch can take different turns.

    Args:
        model: any decoder-only `AutoModelForCausalLM` that `capability` accepts.
        input_ids: int64 [B, P].
        attention_mask: int or bool [B, P], 1 at real tokens; None means all ones.
        room: columns and tree slots that are expected to follow; more is possible.
        compiled: run the decoder layers compiled (see `crs_fast.decode.lm.regions`).

    Raises:
        ValueError: shapes disagree, a row has no token, or the model can't hold a token tree.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        room: int = 0,
        compiled: bool = False,
    ) -> None:
        from .capability import capability

        ids, mask = checked_inputs("Prompt", input_ids, attention_mask)
        able = capability(model)
        if able.attention is None:
            raise ValueError(f"Prompt: the model must hold a token tree (got {able.reason})")
        self._start(TreeModel(model, able.attention, compiled), *pad_right(ids, mask), room)

    def _start(
        self, lm: TreeModel, ids: torch.Tensor, mask: torch.Tensor, padded: bool, room: int
    ) -> None:
        from .cache import growing_cache

        self.lm, self.padded = lm, padded
        self.ids, self.mask = ids, mask  # [B, S], what the cache holds
        self.cache = growing_cache(room)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        hidden = lm.columns(ids, None, positions, self.cache)
        self.hidden = _last(hidden, mask)  # [B, H], after each row's last token

    @classmethod
    def of(
        cls, lm: TreeModel, ids: torch.Tensor, mask: torch.Tensor, padded: bool, room: int = 0
    ) -> Prompt:
        """A prompt on a `TreeModel` that is there already, its rows padded on the right (`padded`:
        whether any is). Nothing is checked and nothing waits for the device."""
        prompt = cls.__new__(cls)
        prompt._start(lm, ids, mask, padded, room)
        return prompt

    @property
    def length(self) -> int:
        """Columns of the sequence, all of them cached."""
        return self.ids.shape[1]

    @property
    def visible(self) -> torch.Tensor | None:
        """The mask, or None where every column of every row is a token."""
        return self.mask if self.padded else None

    def logits(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """After each row's last token: [B, V], or [B, C] for tokens int64 [C]."""
        return self.lm.head(self.hidden, tokens)

    def append(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Feed columns ids [B, n], valid where mask bool [B, n] says (default everywhere)."""
        if mask is None:
            mask = torch.ones_like(ids, dtype=torch.bool)
        else:
            self.padded |= not bool(mask.all())
        self.ids = torch.cat([self.ids, ids], 1)
        self.mask = torch.cat([self.mask, mask], 1)
        positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        seen = None if self.visible is None else self.visible.long()
        hidden = self.lm.columns(ids, seen, positions, self.cache)
        fed = mask.any(1, keepdim=True)
        self.hidden = torch.where(fed, _last(hidden, mask), self.hidden)

    def grow(self, ids: torch.Tensor, positions: torch.Tensor, tree: TreeState) -> torch.Tensor:
        """Feed tree slots ids [B, M]; they join the cache but not the sequence (`crop` drops
        them). Hidden states [B, M, H]."""
        return self.lm.slots(ids, positions, tree, self.cache)

    def keep(self, ids: torch.Tensor, mask: torch.Tensor, slots: torch.Tensor) -> None:
        """Make tree slots [B, n] the next columns, tokens ids [B, n], valid where mask [B, n]; the
        other slots are dropped. `hidden` stays: feed a token before asking for logits."""
        from .cache import move_columns

        move_columns(self.cache, slots + self.length, self.length)
        self.ids = torch.cat([self.ids, ids], 1)
        self.mask = torch.cat([self.mask, mask], 1)
        self.padded |= not bool(mask.all())

    def crop(self, length: int | None = None) -> None:
        """Forget tree slots and, where `length` is given, columns from there on."""
        from .cache import crop_columns

        if length is not None:
            self.ids, self.mask = self.ids[:, :length], self.mask[:, :length]
        crop_columns(self.cache, self.length)

    def rewind(self, tokens: torch.Tensor) -> None:
        """Keep each row's first `tokens` [B] tokens. `hidden` stays: feed a token before asking
        for logits."""
        self.mask = self.mask & (self.mask.cumsum(1) <= tokens[:, None])
        self.crop(int((self.mask.any(0).nonzero().amax()) + 1) if bool(self.mask.any()) else 0)
        self.padded = not bool(self.mask.all())

    def select(self, rows: list[int]) -> Prompt:
        """A prompt of some rows; the cache is copied unless all rows are taken."""
        return self if rows == list(range(self.ids.shape[0])) else self.copy(rows)

    def copy(self, rows: list[int]) -> Prompt:
        """A prompt with a cache of its own for some rows, in any order and any number of times."""
        from .cache import select_rows

        chosen = copy.copy(self)
        index = torch.tensor(rows, device=self.ids.device)
        chosen.ids, chosen.mask = self.ids[index], self.mask[index]
        chosen.hidden = self.hidden[index]
        chosen.cache = select_rows(self.cache, index)
        return chosen


def checked_inputs(
    op: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 [B, P] and mask bool [B, P].

    Raises:
        ValueError: ids are no integers, shapes disagree, or a row has no token.
    """
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{op}: input_ids must be int64 or int32 (got {input_ids.dtype})")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(
            f"{op}: input_ids must be [B, P] with B and P at least 1 (got {tuple(input_ids.shape)})"
        )
    input_ids = input_ids.long()
    if attention_mask is None:
        return input_ids, torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"{op}: attention_mask must have the shape of input_ids, {tuple(input_ids.shape)} "
            f"(got {tuple(attention_mask.shape)})"
        )
    mask = attention_mask.bool()
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(
            f"{op}: attention_mask must mark at least one token a row (row {row} has none)"
        )
    return input_ids, mask


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token sequences of unequal length as one batch: ids int64 [B, P] and mask bool [B, P]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Each row's real tokens moved to its beginning, in order; and whether any padding is left."""
    if bool(mask.all()):
        return ids, mask, False
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
    order = order[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    return ids.gather(1, order), mask, not bool(mask.all())


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [B, n, H] at each row's last valid column: [B, H]."""
    column = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = ((mask * column).amax(1) - 1).clamp(min=0)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
