"""A prompt's keys and values, stored once and grown as decoding goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from crs_fast.ops.host import as_integers, as_numbers, check_integer

from .capability import capability
from .stand_in import unwrapped
from .tree_model import TreeModel
from .tree_state import TreeState

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


class PaddedBatch(NamedTuple):
    """Token sequences of unequal length, padded on the right.

    ids int64 [B, P]
    mask bool [B, P]: which of them are tokens
    is_padded: whether any is not
    """

    ids: torch.Tensor
    mask: torch.Tensor
    is_padded: bool


class Prompt:
    """A batch of token sequences and the model's cache of them.

    Prompts of unequal length are padded on the right, where causal attention needs no mask to
    ignore it. A cache position may hold a token in some rows only: `mask` says in which, and
    position ids count tokens only, so rows of a batch can take different turns.

    Args:
        model: any decoder-only `AutoModelForCausalLM` that `capability` accepts.
        input_ids: int64 [B, P].
        attention_mask: int or bool [B, P], 1 at real tokens; None means all ones.
        room: cache positions that are expected to be needed behind the prompt, for tokens and for
            trees; more is possible.
        compiled: run the decoder layers compiled (see `crs_fast.decode.lm.compiled_layers`).

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
        ids, mask = checked_inputs("Prompt", input_ids, attention_mask)
        check_integer("Prompt: room", room, 0)
        model = unwrapped(model)
        attention, reason, _ = capability(model)
        if attention is None:
            raise ValueError(f"Prompt: the model must hold a token tree (got {reason})")
        self._prefill(TreeModel(model, attention, compiled), pad_right(ids, mask), room)

    @classmethod
    def of(cls, lm: TreeModel, batch: PaddedBatch, room: int = 0) -> Prompt:
        """A prompt for a `TreeModel` that is there already. Nothing is checked and nothing waits
        for the device."""
        prompt = cls.__new__(cls)
        prompt._prefill(lm, batch, room)
        return prompt

    @classmethod
    def holding(cls, lm: TreeModel, ids: torch.Tensor, mask: torch.Tensor, cache: Cache) -> Prompt:
        """A prompt of what a cache holds already: ids int64 and mask bool [B, S]. Feed a token to
        every row before asking for logits."""
        prompt = cls.__new__(cls)
        prompt.lm, prompt.ids, prompt.mask, prompt.cache = lm, ids, mask, cache
        prompt.is_padded = not bool(mask.all())
        prompt.hidden = torch.zeros(len(ids), 1, dtype=lm.model.dtype, device=ids.device)
        return prompt

    def _prefill(self, lm: TreeModel, batch: PaddedBatch, room: int) -> None:
        from .cache import growing_cache

        self.lm = lm
        self.ids, self.mask, self.is_padded = batch  # [B, S], what the cache holds
        self.cache = growing_cache(room)
        position_ids = torch.arange(self.length, device=self.ids.device).expand(self.ids.shape)
        hidden = lm.append_sequence(self.ids, None, position_ids, self.cache)
        self.hidden = _at_last_token(hidden, self.mask)  # [B, H]

    @property
    def length(self) -> int:
        """S, positions of the sequence, all of them cached."""
        return self.ids.shape[1]

    @property
    def visible(self) -> torch.Tensor | None:
        """The mask, or None where every position of every row holds a token."""
        return self.mask if self.is_padded else None

    def logits(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """After each row's last token: [B, V], or [B, C] for tokens int64 [C]."""
        return self.lm.head(self.hidden, tokens)

    def append(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Feed ids [B, n], which are tokens where mask bool [B, n] says so (default everywhere)."""
        if mask is None:
            mask = torch.ones_like(ids, dtype=torch.bool)
        else:
            self.is_padded |= not bool(mask.all())
        self.ids = torch.cat([self.ids, ids], 1)
        self.mask = torch.cat([self.mask, mask], 1)
        position_ids = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        visible = None if self.visible is None else self.visible.long()
        hidden = self.lm.append_sequence(ids, visible, position_ids, self.cache)
        has_token = mask.any(1, keepdim=True)
        self.hidden = torch.where(has_token, _at_last_token(hidden, mask), self.hidden)

    def grow(self, ids: torch.Tensor, position_ids: torch.Tensor, tree: TreeState) -> torch.Tensor:
        """Feed one tree token per beam, ids [B, M]. They join the cache but not the sequence
        (`crop` drops them). Returns hidden states [B, M, H]."""
        return self.lm.append_tree(ids, position_ids, tree, self.cache)

    def keep(self, ids: torch.Tensor, mask: torch.Tensor, tree_positions: torch.Tensor) -> None:
        """Make what stands at tree positions [B, n] the next part of the sequence, ids [B, n],
        which are tokens where mask [B, n] says so, and drop the rest of the tree. `hidden` stays
        as it was: feed a token before asking for logits."""
        from .cache import move

        move(self.cache, tree_positions + self.length, self.length)
        self.ids = torch.cat([self.ids, ids], 1)
        self.mask = torch.cat([self.mask, mask], 1)
        self.is_padded |= not bool(mask.all())

    def crop(self, length: int | None = None) -> None:
        """Forget the tree and, where `length` is given, the sequence from there on."""
        from .cache import crop

        if length is not None:
            self.ids, self.mask = self.ids[:, :length], self.mask[:, :length]
        crop(self.cache, self.length)

    def rewind(self, tokens: torch.Tensor) -> None:
        """Keep each row's first `tokens` [B] tokens. `hidden` stays as it was: feed a token before
        asking for logits."""
        self.mask = self.mask & (self.mask.cumsum(1) <= tokens[:, None])
        self.crop(int((self.mask.any(0).nonzero().amax()) + 1) if bool(self.mask.any()) else 0)
        self.is_padded = not bool(self.mask.all())

    def select(self, rows: list[int]) -> Prompt:
        """A prompt of some rows; the cache is copied unless all rows are taken."""
        return self if rows == list(range(self.ids.shape[0])) else self.copy(rows)

    def copy(self, rows: list[int]) -> Prompt:
        """A prompt with a cache of its own for some rows, in any order and any number of times."""
        from .cache import select_rows

        selected = copy.copy(self)
        index = torch.tensor(rows, device=self.ids.device)
        selected.ids, selected.mask = self.ids[index], self.mask[index]
        selected.hidden = self.hidden[index]
        selected.cache = select_rows(self.cache, index)
        return selected


def checked_inputs(
    op: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 [B, P] and mask bool [B, P].

    Raises:
        ValueError: ids are no integers, shapes disagree, or a row has no token.
    """
    input_ids = as_numbers(f"{op}: input_ids", input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{op}: input_ids must be int64 or int32 (got {input_ids.dtype})")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(
            f"{op}: input_ids must be [B, P] with B and P at least 1 (got {tuple(input_ids.shape)})"
        )
    input_ids = input_ids.long()
    if attention_mask is None:
        return input_ids, torch.ones_like(input_ids, dtype=torch.bool)
    attention_mask = as_numbers(f"{op}: attention_mask", attention_mask)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"{op}: attention_mask must have the shape of input_ids, {tuple(input_ids.shape)} "
            f"(got {tuple(attention_mask.shape)})"
        )
    mask = attention_mask.bool()
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(
            f"{op}: attention_mask must mark at least one token a row (got none in row {row})"
        )
    return input_ids, mask


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token sequences of unequal length as one batch: ids int64 [B, P] and mask bool [B, P].

    Raises:
        ValueError: there is no sequence, or a token or the padding is no integer.
    """
    width = _width("left_pad", rows, pad_id)
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return _batch("left_pad", ids, mask)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `left_pad`, with the padding on the right."""
    width = _width("right_pad", rows, pad_id)
    ids = [list(row) + [pad_id] * (width - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return _batch("right_pad", ids, mask)


def _width(op: str, rows: Sequence[Sequence[int]], pad_id: int) -> int:
    """The length of the longest sequence.

    Raises:
        ValueError: there is no sequence, or the padding is no integer.
    """
    check_integer(f"{op}: pad_id", pad_id, -(1 << 31))
    try:
        return max(len(row) for row in rows)
    except (TypeError, ValueError):
        raise ValueError(
            f"{op}: rows must be at least one sequence of token ids (got {rows!r:.100})"
        ) from None


def _batch(
    op: str, ids: list[list[int]], mask: list[list[bool]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Raises:
        ValueError: a token is no integer.
    """
    tokens = as_integers(f"{op}: rows", ids)
    if tokens.ndim != 2:
        raise ValueError(
            f"{op}: rows must be sequences of token ids (got a token of shape "
            f"{tuple(tokens.shape[2:])})"
        )
    return tokens.long(), torch.tensor(mask, device="cpu").bool()


def pad_right(ids: torch.Tensor, mask: torch.Tensor) -> PaddedBatch:
    """Each row's real tokens moved to its beginning, in order. ids int64 and mask bool [B, P]."""
    if bool(mask.all()):
        return PaddedBatch(ids, mask, False)
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
    order = order[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    return PaddedBatch(ids.gather(1, order), mask, not bool(mask.all()))


def _at_last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """hidden [B, n, H] at the last position of each row where mask [B, n] is true: [B, H]."""
    position = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = ((mask * position).amax(1) - 1).clamp(min=0)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
