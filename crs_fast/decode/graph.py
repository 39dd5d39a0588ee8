"""Whole searches recorded in CUDA graphs: prefill and every step, recorded once and replayed.

    first call of a shape   run twice on a stream of its own (kernels compile), then record
    each call after         copy prompt and filters in, replay, copy the beams out

A shape is what a recorded graph can't change: batch, prompt length rounded up, beams, the trie's
addresses (a `TrieSlot` keeps them across catalogues), the vocabulary, the filters' shape and how
scores are made. A model keeps its newest few graphs in one memory pool, so together they take the
memory of the largest. Weights may change in place. What else a model runs (adapters put on,
switched or merged, weights moved) is compared while the device replays, and a difference drops the
model's graphs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from crs_fast.ops import FilterTensors
from crs_fast.trie import Vocabulary

from .lm.model_state import ModelState
from .lm.prompt import PaddedBatch, Prompt
from .lm.recordings import RecordingPlace, record, rounded_up
from .lm.tree_model import TreeModel
from .output import Beams
from .search import search
from .search_plan import SearchPlan
from .search_request import SearchRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GraphShape(NamedTuple):
    """What a recorded graph can't change; it serves every call of the same shape.

    batch, length: of the prompts, the length rounded up
    is_padded: whether prompts may be shorter than that
    compiled: whether the decoder layers run compiled
    catalogue: addresses and shapes of the trie's tensors
    vocab: which token stands for which code
    filters: shape of the bitmaps
    """

    batch: int
    length: int
    is_padded: bool
    num_beams: int
    normalize: str
    temperature: float
    compiled: bool
    training: bool
    dtype: torch.dtype
    catalogue: tuple[tuple[int, torch.Size], ...]
    vocab: Vocabulary
    filters: torch.Size | None

    @classmethod
    def of(
        cls, model: PreTrainedModel, prompts: PaddedBatch, request: SearchRequest, compiled: bool
    ) -> GraphShape:
        bitmaps = request.bitmaps
        length = rounded_up(prompts.ids.shape[1])
        return cls(
            batch=request.batch,
            length=length,
            is_padded=prompts.is_padded or length > prompts.ids.shape[1],
            num_beams=request.num_beams,
            normalize=request.normalize,
            temperature=request.temperature,
            compiled=compiled,
            training=model.training,
            dtype=model.dtype,
            # A recorded search keeps the trie, so nothing else takes its addresses.
            catalogue=tuple((tensor.data_ptr(), tensor.shape) for tensor in request.trie.tensors),
            vocab=request.vocabulary,
            filters=None if bitmaps is None else bitmaps.words.shape,
        )


def search_in_graph(
    model: PreTrainedModel,
    attention: str,
    shape: GraphShape,
    prompts: PaddedBatch,
    request: SearchRequest,
) -> Beams:
    """`search` after prompts, by the CUDA graph recorded for this shape, which is recorded first
    where there is none. `attention` as `capability` says."""

    def make(place: RecordingPlace) -> RecordedSearch:
        lm = TreeModel(model, attention, shape.compiled, one_shape=True)
        return RecordedSearch(lm, shape, request, place)

    inputs = prompts.ids, prompts.mask, request.bitmaps
    recordings = ModelState.of(model).recordings
    return recordings.run(model, prompts.ids.device, shape, make, inputs)


class RecordedSearch:
    """One search on inputs that stay where they are. Holds the model's weights, not the model.

    Args:
        lm: of a model that `capability` accepts.
        shape: of the calls it will serve.
        request: one of them. Its filters are replaced by room for others of the same shape.
        place: where to record.
    """

    def __init__(
        self, lm: TreeModel, shape: GraphShape, request: SearchRequest, place: RecordingPlace
    ) -> None:
        plan, device = SearchPlan.of(request, lm.head.streams), request.trie.device
        size = shape.batch, shape.length
        with torch.inference_mode(False):  # else only other inference code could fill them
            self._ids = torch.zeros(size, dtype=torch.int64, device=device)
            self._mask = torch.ones(size, dtype=torch.bool, device=device)
            if plan.filters is not None:
                bitmaps = FilterTensors(*(tensor.clone() for tensor in plan.filters))
                plan = replace(plan, filters=bitmaps)
        # The graph knows addresses only: what lies there must stay.
        weights = lm.tensors()
        self._filters, self._kept = plan.filters, (plan, weights)
        prompts = PaddedBatch(self._ids, self._mask, shape.is_padded)
        self._replay = record(
            lambda: search(Prompt.of(lm, prompts, request.tree_size), plan), place
        )

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, bitmaps: FilterTensors | None
    ) -> Beams:
        """The beams after prompts [B, P] that are padded on the right, with P at most the recorded
        length."""
        length = ids.shape[1]
        self._ids[:, :length] = ids
        self._mask[:, :length] = mask
        self._mask[:, length:] = False
        if bitmaps is not None:
            assert self._filters is not None
            for recorded, given in zip(self._filters, bitmaps, strict=True):
                recorded.copy_(given)
        return Beams(*(tensor.clone() for tensor in self._replay()))
