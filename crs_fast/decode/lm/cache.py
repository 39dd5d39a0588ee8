"""A key-value cache that grows in place and never evicts."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """One layer's keys and values: views [B, H, S, D] into buffers that may be longer than S.

    Layers with a sliding window keep everything too, so that a tree never pushes the prompt out.
    The model's own masks still hide what lies outside the window.

    Args:
        room: cache positions that the buffers have to spare when they are first made.
    """

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._views: Any = (None, None)
        self.keys: Any  # the base class allows None, which only an unused layer has
        self.values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.get_seq_length() if self.is_initialized else 0
        keys, values = self.extended(key_states.shape[-2], key_states, value_states)
        keys[..., before:, :] = key_states
        values[..., before:, :] = value_states
        return keys, values

    def extended(
        self, added: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The cached keys and values, with so many added positions at the end, which are still to
        be written. `keys` and `values` are examples of their shape, dtype and device."""
        before = self.get_seq_length() if self.is_initialized else 0
        length = before + added
        # A base-class method (reorder, select) may have put other tensors in place of the views.
        intact = self.keys is self._views[0] and self.values is self._views[1]
        if self._buffers is None or not intact or length > self._buffers[0].shape[-2]:
            self._buffers = (
                self._grown(self.keys, keys, before, length),
                self._grown(self.values, values, before, length),
            )
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        return self._show(length)

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with the positions to spare behind them, which hold anything."""
        if self._buffers is None or self.keys is not self._views[0]:
            return self.keys, self.values
        return self._buffers

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` positions; a negative number drops that many at the end."""
        if not self.is_initialized:
            return
        length = self.get_seq_length()
        keep = min(max_length, length) if max_length > 0 else length + max_length
        if self._buffers is not None and self.keys is self._views[0]:
            self._show(keep)
        else:
            self.keys, self.values = self.keys[..., :keep, :], self.values[..., :keep, :]

    def _grown(self, old: Any, like: torch.Tensor, before: int, length: int) -> torch.Tensor:
        # Half as much again, so that adding one token at a time does not copy the cache each time.
        capacity = length + max(self.room, length // 2 if before else 0)
        buffer = like.new_empty(*like.shape[:-2], capacity, like.shape[-1])
        if before:
            buffer[..., :before, :] = old
        return buffer

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._buffers is not None
        keys, values = self._buffers
        self._views = (keys[..., :length, :], values[..., :length, :])
        self.keys, self.values = self._views
        return self._views


def growing_cache(room: int = 0) -> Cache:
    """An empty cache. `room`: positions that are expected to be added after the first ones."""
    return Cache(layer_class_to_replicate=lambda: GrowingLayer(room))  # type: ignore[arg-type]


def select_rows(cache: Cache, rows: torch.Tensor) -> Cache:
    """A new cache of some rows of the batch, int64 [R]; the original stays as it was."""
    selected = growing_cache()
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        if layer.is_initialized:
            selected.update(layer.keys[rows], layer.values[rows], index)
    return selected


def crop(cache: Cache, length: int) -> None:
    """Drop the positions from `length` on. Each layer is asked for its own length, because a
    forward pass that failed has filled some layers only."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if layer.is_initialized:
            layer.crop(min(0, length - layer.get_seq_length()))


def move(cache: Cache, positions: torch.Tensor, start: int) -> None:
    """Copy the keys and values at positions int64 [B, n] of each row to `start` and the positions
    after it, and drop all that follows."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if not layer.is_initialized:
            continue
        for states in (layer.keys, layer.values):
            index = positions[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            states[..., start : start + positions.shape[1], :] = states.gather(2, index)
    crop(cache, start + positions.shape[1])
