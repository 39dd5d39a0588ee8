"""The CUDA graphs recorded of one model: how one is made, which are kept, whose turn it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

# Per model: of searches, and of steps, for which numbers of rows and positions both vary.
MAX_RECORDINGS = 8
MAX_STEP_RECORDINGS = 32
_WARM_UP = 2
# Attributes of PEFT's layers that say what an adapter does.
_ADAPTER = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")


class RecordingPlace(NamedTuple):
    """Where a graph is recorded: the memory pool that a model's graphs share, and the one stream
    that all of them are recorded on, because memory is free for its own stream only."""

    pool: Any
    stream: Any


class Recordings:
    """A model's recorded CUDA graphs, the newest last. Calls take turns, because the graphs share
    their memory.

    Args:
        lock: the model's.
        most: as many are kept.
    """

    def __init__(self, lock: threading.Lock, most: int = MAX_RECORDINGS) -> None:
        self._lock, self._most = lock, most
        # Each with the model's fingerprint at the time.
        self._kept: OrderedDict[Hashable, tuple[list[Any], Callable[..., Any]]] = OrderedDict()
        self._newest: list[Any] = []  # the model's last fingerprint
        self._pool: Any = None
        self._stream: Any = None
        self._last_replay: Any = None  # event: the newest replay has ended

    def run(
        self,
        model: PreTrainedModel,
        device: torch.device,
        key: Hashable,
        make: Callable[[RecordingPlace], Callable[..., T]],
        inputs: tuple[Any, ...],
        is_unchanged: bool = False,
    ) -> T:
        """What the graph of this key gives for `inputs`, which are on `device`. `make` records the
        graph where there is none, or where the model has changed since. `is_unchanged`: the model
        is as it was at its last fingerprint, so none is taken."""
        with self._turn(device):
            others = self._most - 1
            if key in self._kept:
                self._kept.move_to_end(key)
                recorded, replay = self._kept[key]
                result = replay(*inputs)
                # Compared while the device replays.
                if not is_unchanged:
                    self._newest = fingerprint(model)
                if recorded == self._newest:
                    return result
                others = 0  # none of them is of the model as it is now
            with _recording:
                self._keep_newest(others)
                pool, self._pool = self._pool, None  # what a failure leaves in it, nobody knows
                self._newest = fingerprint(model)
                self._kept[key] = self._newest, make(RecordingPlace(pool, self._stream))
            self._pool = pool
            _, replay = self._kept[key]
            return replay(*inputs)

    def _keep_newest(self, number: int) -> None:
        """Drop all but the newest graphs."""
        self._drop(list(self._kept)[: max(0, len(self._kept) - number)])

    def drop(self, device: torch.device, is_useless: Callable[[Any], bool]) -> None:
        """Drop the graphs with keys that nobody will ask for again."""
        with self._turn(device):
            self._drop([key for key in self._kept if is_useless(key)])
            if not self._kept:
                self._pool = None  # its memory goes back with its last graph

    def _drop(self, keys: list[Hashable]) -> None:
        if keys and self._last_replay is not None:
            torch.cuda.synchronize()  # none of them may be running
        for key in keys:
            del self._kept[key]

    @contextmanager
    def _turn(self, device: torch.device) -> Iterator[None]:
        """Alone on the host, and on the device after the last replay, whatever stream that took.
        Meanwhile the device is the current one, for which streams and graphs are made."""
        with self._lock:
            if device.type != "cuda":
                yield
                return
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(device)
            if self._last_replay is None:
                self._last_replay = torch.cuda.Event()
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self._last_replay)
            try:
                with torch.cuda.device(device):
                    yield
            finally:
                self._last_replay.record(stream)


_recording = threading.Lock()  # CUDA: a process records one graph at a time, whatever the model


def can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def record(run: Callable[[], T], place: RecordingPlace) -> Callable[[], T]:
    """Record `run` in a CUDA graph. Returns a function that replays the graph and gives the result,
    in the same tensors every time."""
    current = torch.cuda.current_stream()
    place.stream.wait_stream(current)
    with torch.cuda.stream(place.stream):
        for _ in range(_WARM_UP):
            run()
    place.stream.synchronize()  # what ran eagerly frees its memory before recording takes any
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(
            graph,
            pool=place.pool,
            stream=place.stream,
            capture_error_mode="thread_local",  # other threads may use the device meanwhile
        ):
            result = run()
    finally:
        torch.cuda.set_stream(current)  # a capture that breaks leaves the other one current
    current.wait_stream(place.stream)

    def replay() -> T:
        graph.replay()
        return result

    return replay


def device_memory(device: torch.device) -> int:
    """Bytes of memory that a GPU has, whoever uses them."""
    return torch.cuda.get_device_properties(device).total_memory


def rounded_up(length: int, least_step: int = 16) -> int:
    """The length that is recorded for a `length`: less than `least_step` or an eighth more, so that
    few graphs serve all lengths."""
    step = max(least_step, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step


def fingerprint(model: PreTrainedModel) -> list[Any]:
    """What a model would run, as far as a recording depends on it: its modules, where their weights
    lie, which attention it uses and what PEFT's adapters do."""
    values: list[Any] = [model.config._attn_implementation]
    for module in model.modules():
        values += [id(module), *(tensor.data_ptr() for tensor in own_tensors(module))]
        adapter = [vars(module).get(name) for name in _ADAPTER]
        if any(value is not None for value in adapter):
            values.append(str(adapter))
    return values


def own_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """A module's own parameters and buffers, without those of its children."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]
