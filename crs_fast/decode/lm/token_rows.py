"""Cached token sequences that join a batch, grow by one token at a time, and leave it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

from .cache import GrowingLayer
from .prompt import Prompt
from .tree_model import TreeModel
from .tree_state import RowState


class TokenRows:
    """A batch of cached token sequences, each of which grows at its own end.

    A `Prompt` grows by the same positions in all rows, and rows can't be added to it. Here each row
    has its own length: prompts join while others are being continued, and rows leave in any order.
    Joining copies a prompt's keys and values once; a prompt that joins an empty batch lends its
    buffers.

    lm: the model that reads all of them
    """

    _borrows = True

    def __init__(self, lm: TreeModel) -> None:
        self.lm = lm
        # Weak, so that the layers' memory goes back as soon as nobody holds the rows.
        self._weak_self: TokenRows = weakref.proxy(self)
        new_layer = partial(RowsLayer, self._weak_self)
        self._cache = Cache(layer_class_to_replicate=new_layer)  # type: ignore[arg-type]
        self._counts: list[int] = []  # tokens of each row
        self._ends: list[int] = []  # the position behind each row's last token
        self._visible = torch.empty(0, 0, dtype=torch.bool, device=lm.model.device)
        # Of the forward pass in progress: where the new tokens belong, int64 [R], and the number of
        # positions that it reads.
        self.at = torch.empty(0, dtype=torch.int64, device=lm.model.device)
        self.width = 0

    def __len__(self) -> int:
        return len(self._ends)

    def join(self, prompt: Prompt) -> None:
        """Add the sequences of a prompt as the last rows. The prompt must not grow any more while
        they are here."""
        first, batch, length = len(self), *prompt.ids.shape
        layers: list[Any] = prompt.cache.layers
        own: list[Any] = self._cache.layers
        while len(own) < len(layers):
            own.append(RowsLayer(self._weak_self))
        for rows_layer, layer in zip(own, layers, strict=False):
            if not layer.is_initialized:
                continue
            if first == 0 and self._borrows:
                rows_layer.adopt(layer)
            else:
                rows_layer.put(first, layer.keys, layer.values)
        self._see(first + batch, length + 1)
        self._visible[first : first + batch, :length] = prompt.mask
        self._visible[first : first + batch, length:] = False
        position = torch.arange(1, length + 1, device=prompt.mask.device)
        self._ends += (prompt.mask * position).amax(1).tolist()
        self._counts += prompt.mask.sum(1).tolist()

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, ids int64 [R]. Returns hidden states [R, H]."""
        self.width = max(self._ends) + 1
        hidden = self._append(ids)
        self._ends = [end + 1 for end in self._ends]
        self._counts = [count + 1 for count in self._counts]
        return hidden

    def _append(self, ids: torch.Tensor) -> torch.Tensor:
        self._see(len(self), self.width)
        device = self._visible.device
        self.at, positions = torch.tensor([self._ends, self._counts], device=device)
        is_whole = all(count + 1 == self.width for count in self._counts)
        return self._forward(ids, positions, is_whole)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, is_whole: bool = False
    ) -> torch.Tensor:
        """ids and positions int64 [R] -> hidden states [R, H]. `is_whole`: no row has a position
        without a token."""
        visible = self._visible[: len(ids), : self.width]
        visible.scatter_(1, self.at[:, None], True)
        state = RowState(None if is_whole else visible)
        return self.lm.append_tree(ids[:, None], positions[:, None], state, self._cache)[:, 0]

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Remove rows; some of the last ones take their places. Returns the number that each row
        that is left had before."""
        gone = set(rows)
        order = list(range(len(self)))
        left = len(order) - len(gone)
        movers = [row for row in order[left:] if row not in gone]
        holes = sorted(row for row in gone if row < left)
        for hole, row in zip(holes, movers, strict=True):
            self._visible[hole] = self._visible[row]
            order[hole] = row
        del order[left:]
        layers: list[Any] = self._cache.layers
        for layer in layers if holes else ():
            layer.move(movers, holes, order)
        self._ends = [self._ends[row] for row in order]
        self._counts = [self._counts[row] for row in order]
        if not order:
            self._free()
        return order

    def _free(self) -> None:
        """The last row has left: memory goes back, and the next prompt lends its own."""
        self._cache.layers.clear()

    def _see(self, rows: int, width: int) -> None:
        """Make room in `_visible`."""
        have_rows, have = self._visible.shape
        if rows > have_rows or width > have:
            rows, width = self.room((have_rows, have), rows, width)
            added = (0, width - have, 0, rows - have_rows)
            self._visible = F.pad(self._visible, added, value=False)

    def room(self, have: tuple[int, int], rows: int, width: int) -> tuple[int, int]:
        """The rows and positions that buffers get which have too few: more than they lack, so that
        they seldom grow."""
        have_rows, have_width = have
        more_rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        return more_rows, have_width if width <= have_width else width + width // 2


class RowsLayer(DynamicLayer):
    """One layer's keys and values of `TokenRows`: buffers [R', H, S', D], larger than what is used.

    Args:
        rows: says where the new tokens of a forward pass belong.
    """

    def __init__(self, rows: TokenRows) -> None:
        super().__init__()
        self.rows = rows
        self.is_lent = False
        self.keys: Any
        self.values: Any

    def get_seq_length(self) -> int:
        return self.rows.width - 1

    def adopt(self, layer: GrowingLayer) -> None:
        """Use the buffers of a prompt's layer, whose positions stay as they are."""
        self.keys, self.values = layer.buffers
        self.is_lent = True
        # Attention multiplies what a row does not see by 0, so it must be numbers.
        for states in (self.keys, self.values):
            states[:, :, layer.get_seq_length() :] = 0
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def put(self, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy keys and values [B, H, n, D] into the rows from `first` on, with room for a token
        more."""
        rows, length = first + keys.shape[0], keys.shape[2]
        if not self.is_initialized:
            self.keys, self.values = keys[:0], values[:0]
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.reserve(rows, length + 1)
        for buffer, states in ((self.keys, keys), (self.values, values)):
            buffer[first:rows, :, :length] = states
            buffer[first:rows, :, length:] = 0  # a row that left may have had numbers that are none

    def reserve(self, rows: int, width: int) -> None:
        """Make room for so many rows and positions."""
        have_rows, _, have, _ = self.keys.shape
        if rows <= have_rows and width <= have:
            return
        rows, width = self.rows.room((have_rows, have), rows, width)
        self.keys = _larger(self.keys, rows, width)
        self.values = _larger(self.values, rows, width)
        self.is_lent = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new token of each row, [R, H, 1, D], to the row's end."""
        rows, width = key_states.shape[0], self.rows.width
        self.reserve(rows, width)
        row = torch.arange(rows, device=key_states.device)
        self.keys[row, :, self.rows.at] = key_states[:, :, 0]
        self.values[row, :, self.rows.at] = value_states[:, :, 0]
        return self.keys[:rows, :, :width], self.values[:rows, :, :width]

    def move(self, rows: list[int], holes: list[int], order: list[int]) -> None:
        """Copy rows over the holes that others leave, so that row r is what row `order[r]` was."""
        if not self.is_initialized:
            return
        if self.is_lent:  # the prompt's rows stay where they are
            self.keys, self.values = self.keys[order], self.values[order]
            self.is_lent = False
            return
        for row, hole in zip(rows, holes, strict=True):
            self.keys[hole], self.values[hole] = self.keys[row], self.values[row]


def _larger(buffer: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    # Zeros, because attention multiplies what a row does not see by 0.
    larger = buffer.new_zeros(rows, buffer.shape[1], width, buffer.shape[3])
    larger[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return larger
