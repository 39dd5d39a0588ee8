"""Token rows whose forward passes are recorded in CUDA graphs and replayed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from .model_state import ModelState
from .prompt import Prompt
from .recordings import RecordingPlace, device_memory, record, rounded_up
from .token_rows import RowsLayer, TokenRows
from .tree_model import TreeModel

# Positions by which the widths of recordings differ; more for wide ones.
_WIDTH_STEP = 256
# The part of the device's memory that may hold keys and values while there are no rows.
_KEPT_SHARE = 0.25
_FAILURE = ("token_rows", None)

Buffers = tuple[tuple[int, torch.Size], ...]


class StepShape(NamedTuple):
    """What a recorded forward pass can't change.

    owner: whose buffers they are
    rows, width: numbers of rows and positions, rounded up
    buffers: addresses and shapes of what it reads and writes
    """

    owner: weakref.ref[RecordedRows]
    rows: int
    width: int
    buffers: Buffers


class RecordedRows(TokenRows):
    """`TokenRows` on a GPU, where the host needs more time to launch the kernels of a forward pass
    than the device to run them.

        feed: round the numbers of rows and positions up
              copy tokens, their positions and where they belong to where the recording reads them
              replay the forward pass recorded for this shape, or record it first

    Rounded, because a server meets all numbers of rows and lengths, and recording takes as long as
    several forward passes. Rows become a power of two: those that fill up a shape read one token
    that nobody asks for, which costs little beside the weights. Positions cost time and memory in
    every row, so they become a multiple of 256: four shapes for up to 1,024 positions, and from
    4,096 on eight for each doubling. The buffers are as large as the largest shape.

    A prompt's keys and values are always copied, so that the buffers stay where they are while rows
    join and leave. Without rows they stay too, unless they take much of the device's memory. When
    they grow, all shapes are recorded anew. Recording runs a forward pass several times, which
    changes nothing: the same token is written to the same position.

    Whether the model has changed is checked when rows join and not in every step, because for 30
    layers that takes more than a millisecond of the host's time.
    """

    _borrows = False

    def __init__(self, lm: TreeModel) -> None:
        super().__init__(lm)
        # Token ids, where they belong in the cache, and their positions.
        self._inputs = torch.zeros(3, 0, dtype=torch.int64, device=lm.model.device)
        self._recorded_buffers: Buffers = ()
        self._is_joined = False  # since the last step

    def join(self, prompt: Prompt) -> None:
        super().join(prompt)
        self._is_joined = True

    def _append(self, ids: torch.Tensor) -> torch.Tensor:
        state, failure = ModelState.of(self.lm.model), ""
        if _FAILURE not in state.failures:
            try:
                return self._replayed(state, ids)
            except Exception as problem:  # whatever a model's code raises while it is recorded
                failure = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
        hidden = super()._append(ids)
        if failure:  # and not the model's
            state.failures.add(_FAILURE)
            state.warn_once(f"TokenRows: steps are not recorded in CUDA graphs: {failure}")
        return hidden

    def _replayed(self, state: ModelState, ids: torch.Tensor) -> torch.Tensor:
        number, rows = len(self), _power_of_two(len(self))
        self.width = rounded_up(self.width, _WIDTH_STEP)
        self._see(rows, self.width)
        layers = self._filled_layers()
        for layer in layers:
            layer.reserve(rows, self.width)
        if rows > self._inputs.shape[1]:
            self._inputs = self._inputs.new_zeros(3, rows)
        unused = [0] * (rows - number)
        places = [[*self._ends, *unused], [*self._counts, *unused]]
        self._inputs[0, :number] = ids
        self._inputs[1:, :rows] = torch.tensor(places, device="cpu")
        buffers = [self._inputs, self._visible]
        buffers += [states for layer in layers for states in (layer.keys, layer.values)]
        places_in_memory = tuple((buffer.data_ptr(), buffer.shape) for buffer in buffers)
        if places_in_memory != self._recorded_buffers:
            self._recorded_buffers = places_in_memory
            state.step_recordings.drop(self.lm.model.device, _is_useless)
        shape = StepShape(weakref.ref(self), rows, self.width, places_in_memory)
        tokens, self.at, positions = self._inputs[:, :rows]
        step = partial(self._forward, tokens, positions)
        model = self.lm.model
        hidden = state.step_recordings.run(
            model, model.device, shape, partial(_Recorded, self.lm, step), (), not self._is_joined
        )
        self._is_joined = False
        return hidden[:number]

    def room(self, have: tuple[int, int], rows: int, width: int) -> tuple[int, int]:
        """Exactly the shape that will be recorded."""
        return max(have[0], _power_of_two(rows)), max(have[1], rounded_up(width, _WIDTH_STEP))

    def _free(self) -> None:
        layers = self._filled_layers()
        nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        if nbytes > _KEPT_SHARE * device_memory(self.lm.model.device):
            super()._free()

    def _filled_layers(self) -> list[RowsLayer]:
        layers: list[Any] = self._cache.layers
        return [layer for layer in layers if layer.is_initialized]


class _Recorded:
    """A recorded forward pass, and the weights at the addresses that it reads."""

    def __init__(
        self, lm: TreeModel, step: Callable[[], torch.Tensor], place: RecordingPlace
    ) -> None:
        self._weights, self._replay = lm.tensors(), record(step, place)

    def __call__(self) -> torch.Tensor:
        """Copied before anybody else may replay, because recordings share their memory."""
        return self._replay().clone()


def _is_useless(shape: StepShape) -> bool:
    """Whether the buffers of a recording are gone."""
    owner = shape.owner()
    return owner is None or owner._recorded_buffers != shape.buffers


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
