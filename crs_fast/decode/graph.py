"""Whole searches as CUDA graphs: prefill and every step recorded once a shape, then replayed.

    first call of a shape   run twice on a stream of its own (kernels compile), then record
    each call after         copy prompt and filters in, replay, copy the beams out

A shape is what a recording can't change: batch, prompt length rounded up, beams, the trie's
addresses (a `TrieSlot` keeps them across catalogues), the vocabulary, the filters' shape and how
scores are made. A model keeps its newest few, in one memory pool, so together they take the memory
of the largest. Weights may change in place; what else a model runs (adapters put on, switched or
merged, weights moved) is compared while the device replays, and a difference drops the model's
recordings.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import FilterTensors

from .attempt import attempt, give_up
from .lm.capability import capability
from .lm.prompt import Prompt, pad_right
from .lm.tree_model import TreeModel
from .search import Beams, SearchPlan, SearchRequest, search

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_RECORDINGS = 8  # of a model
_WARM_UP = 2
# Attributes of PEFT's layers that say what an adapter does.
_ADAPTER = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")


def replayed(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    request: SearchRequest,
    otherwise: Callable[[], Beams],
    compiled: bool = False,
) -> Beams:
    """`search` after a prompt, by a recording; `otherwise()`, with one warning a reason, where that
    can't be. Arguments as `checked_inputs` and `TreeModel` have them."""
    if not can_record(model.device):
        give_up(model, "cuda_graph", f"the model must be on a CUDA device (got {model.device})")
        return otherwise()
    with _lock:
        recordings = _of_model.setdefault(model, Recordings())
    trie, words = request.trie, request.bitmaps
    ids, mask, padded = pad_right(ids, mask)
    columns = rounded_up(ids.shape[1])
    padded = padded or columns > ids.shape[1]
    how = request.num_beams, request.normalize, request.temperature
    mode = compiled, model.training, model.dtype
    # A recording keeps the trie, so that nothing else takes its addresses.
    catalogue = tuple((t.data_ptr(), t.shape) for t in trie.tensors)
    shape = None if words is None else words.words.shape
    key = request.batch, columns, padded, how, mode, catalogue, request.vocabulary, shape

    def make(place: Any) -> Recording:
        lm = TreeModel(model, capability(model).attention or "", compiled)
        return Recording(lm, columns, padded, request, place)

    run = partial(recordings.run, model, key, make, ids, mask, words)
    return attempt(model, "cuda_graph", key, run, otherwise)


def rounded_up(length: int) -> int:
    """The prompt length that is recorded for prompts of `length`: less than 16 or an eighth more,
    so that few recordings serve all lengths."""
    step = max(16, 1 << max(0, length.bit_length() - 4))
    return -(-length // step) * step


class Recording:
    """One search on inputs that stay where they are. Holds the model's weights, not the model.

    Args:
        lm: of a model that `capability` accepts.
        columns: of the prompt.
        padded: whether rows may be shorter than that.
        request: its filters are replaced by room for others of the same shape, its
            vocabulary is kept, so that nothing else takes its identity.
        place: where to record, see `record`.
    """

    def __init__(
        self,
        lm: TreeModel,
        columns: int,
        padded: bool,
        request: SearchRequest,
        place: Any,
    ) -> None:
        self.state = model_state(lm.model)
        plan, device = SearchPlan.of(request), request.trie.device
        with torch.inference_mode(False):  # else only other inference code could fill them
            self.ids = torch.zeros(request.batch, columns, dtype=torch.int64, device=device)
            self.mask = torch.ones(request.batch, columns, dtype=torch.bool, device=device)
            if plan.filters is not None:
                words = FilterTensors(*(t.clone() for t in plan.filters))
                plan = replace(plan, filters=words)
        # The graph knows addresses only: what lies there must stay.
        weights = [t.detach() for module in lm.model.modules() for t in _tensors(module)]
        self._filters, self._kept = plan.filters, (request.vocab, plan, weights)
        self._replay = record(
            lambda: search(Prompt.of(lm, self.ids, self.mask, padded, request.room), plan), place
        )

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, words: FilterTensors | None) -> Beams:
        """The beams after a prompt, right-padded [B, P] with P at most the recorded columns."""
        length = ids.shape[1]
        self.ids[:, :length] = ids
        self.mask[:, :length] = mask
        self.mask[:, length:] = False
        if words is not None:
            assert self._filters is not None
            for mine, other in zip(self._filters, words, strict=True):
                mine.copy_(other)
        return Beams(*(t.clone() for t in self._replay()))


class Recordings:
    """A model's recordings, newest last. Calls take turns: recordings share memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[Any, Recording] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None  # all are recorded on one: memory is free for its own stream only
        self._done: Any = None  # event: the newest replay has ended

    def run(
        self,
        model: PreTrainedModel,
        key: Any,
        make: Callable[[Any], Recording],
        ids: torch.Tensor,
        mask: torch.Tensor,
        words: FilterTensors | None,
    ) -> Beams:
        """The beams after a prompt, recording the search first where it is not."""
        with self._turn(ids.device):
            kept = MAX_RECORDINGS - 1
            if key in self._made:
                self._made.move_to_end(key)
                beams = self._made[key](ids, mask, words)
                # Compared while the device replays.
                if self._made[key].state == model_state(model):
                    return beams
                kept = 0  # another model than was recorded
            with _recording:
                self._keep(kept)
                pool, self._pool = self._pool, None  # what a failure leaves in it, nobody knows
                self._made[key] = make((pool, self._stream))
            self._pool = pool
            return self._made[key](ids, mask, words)

    def _keep(self, number: int) -> None:
        """Drop all but the newest recordings, none of which may be running."""
        if len(self._made) > number and self._done is not None:
            torch.cuda.synchronize()
        while len(self._made) > number:
            self._made.popitem(last=False)

    @contextmanager
    def _turn(self, device: torch.device) -> Iterator[None]:
        """Alone on the host, and on the device after the last replay, whatever stream that took.
        The device is the current one meanwhile: that is what streams and graphs are made for."""
        with self._lock:
            if device.type != "cuda":
                yield
                return
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(device)
            if self._done is None:
                self._done = torch.cuda.Event()
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self._done)
            try:
                with torch.cuda.device(device):
                    yield
            finally:
                self._done.record(stream)


def can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def record(run: Callable[[], Beams], place: Any) -> Callable[[], Beams]:
    """A function that replays `run` and gives its result, in the same tensors every time.

    Args:
        place: memory pool, and the stream that all that shares it is recorded on.
    """
    pool, side = place
    current = torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run()
    side.synchronize()  # what ran eagerly frees its memory before recording takes any
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile.
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            beams = run()
    finally:
        torch.cuda.set_stream(current)  # a capture that breaks leaves the other one current
    current.wait_stream(side)

    def replay() -> Beams:
        graph.replay()
        return beams

    return replay


_of_model: weakref.WeakKeyDictionary[Any, Recordings] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_recording = threading.Lock()  # a process records one graph at a time, whatever the model


def model_state(model: PreTrainedModel) -> list[Any]:
    """What a model would run, as far as a recording depends on it: its modules, where their weights
    lie, which attention it uses and what PEFT's adapters do."""
    state: list[Any] = [model.config._attn_implementation]
    for module in model.modules():
        state += [id(module), *(t.data_ptr() for t in _tensors(module))]
        adapter = [vars(module).get(name) for name in _ADAPTER]
        if any(value is not None for value in adapter):
            state.append(str(adapter))
    return state


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """A module's own parameters and buffers."""
    own = (*module._parameters.values(), *module._buffers.values())
    return [t for t in own if t is not None]
