"""The search between host and host: from a prompt's last state to the beams, all on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F

from crs_fast.ops import FilterTensors, TokenTensors, TrieTensors, trie_step
from crs_fast.ops.trie.reference import NORMALIZE
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary

from .lm.prompt import Prompt
from .lm.tree_view import TreeState
from .output import RecommendOutput

LONG = 8  # levels: SIDs have fewer, titles more, of which most end long before the longest


@dataclass(frozen=True)
class SearchRequest:
    """What a caller asks of a batch of prompts; the fields are `recommend`'s arguments.

    Raises:
        ValueError: `num_beams` < 1, an unknown `normalize`, a temperature that is not above 0, a
            vocabulary that lacks codes of the trie, filters of another catalogue or for another
            number of prompts.
    """

    trie: SidTrie
    vocab: Vocabulary | None
    batch: int
    num_beams: int
    normalize: str
    temperature: float
    filters: ItemFilter | None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"recommend: num_beams must be at least 1 (got {self.num_beams})")
        if self.normalize not in NORMALIZE:
            raise ValueError(
                f"recommend: normalize must be one of {NORMALIZE} (got {self.normalize!r})"
            )
        if not self.temperature > 0:
            raise ValueError(f"recommend: temperature must be above 0 (got {self.temperature})")
        if self.filters is not None and self.filters.num_requests not in (1, self.batch):
            raise ValueError(
                f"recommend: filters must hold one filter for all or one a prompt, {self.batch} "
                f"(got {self.filters.num_requests})"
            )
        # Refuse a vocabulary that lacks codes of the trie, and filters of another catalogue.
        _ = self.vocabulary, self.bitmaps

    @property
    def room(self) -> int:
        """Tree slots a request takes; the last level's tokens are not fed."""
        return self.num_beams * (self.trie.num_levels - 1)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Which token stands for which code, also where `vocab` is None."""
        return self.trie.vocabulary(self.vocab, "recommend")

    @cached_property
    def bitmaps(self) -> FilterTensors | None:
        """One bitmap a request, on the trie's device."""
        filters = self.filters
        if filters is None:
            return None
        if filters.num_requests == 1 and self.batch > 1:
            filters = ItemFilter.stack([filters] * self.batch)
        return filters.over(self.trie).tensors

    def items(self, beams: Beams) -> RecommendOutput:
        """The answer."""
        return RecommendOutput.of(self.trie, beams.sids, beams.nodes, beams.scores, self.filters)


@dataclass(frozen=True)
class SearchPlan:
    """A request with the host's share of the work done.

    trie: the catalogue
    column int64 [L, C]: the LM token of each level's codes, -1 where there is none
    levels: for each level, where codes stand among its logits, and the LM tokens int64 [C] whose
        logits are computed; None means the whole vocabulary, whose sum is asked for
    num_columns: the highest LM token of the vocabulary plus one
    filters: one bitmap a request, or None
    num_beams, normalize, temperature: as in `recommend`
    """

    trie: TrieTensors
    column: torch.Tensor
    levels: Sequence[tuple[TokenTensors, torch.Tensor | None]]
    num_columns: int
    filters: FilterTensors | None
    num_beams: int
    normalize: str
    temperature: float

    @classmethod
    def of(cls, request: SearchRequest) -> SearchPlan:
        tokens = request.vocabulary.tensors(request.trie.device)
        levels = [
            (tokens, None) if request.normalize == "vocab" else _few(tokens, level)
            for level in range(request.trie.num_levels)
        ]
        return cls(
            request.trie.tensors, tokens.column, levels, tokens.num_columns, request.bitmaps,
            request.num_beams, request.normalize, request.temperature,
        )  # fmt: skip


class Beams(NamedTuple):
    """The best beams of B requests, best first.

    sids int64 [B, M, L]: -1 where a SID has ended
    scores float32 [B, M]: sums of log-probs, -inf for invalid beams
    nodes int64 [B, M]: where they stand in the trie
    slots, tokens int64 [B, M, L - 1]: where each beam's tokens stand behind the prompt, and the LM
        tokens themselves; the last level's is not fed
    """

    sids: torch.Tensor
    scores: torch.Tensor
    nodes: torch.Tensor
    slots: torch.Tensor
    tokens: torch.Tensor


def search(prompt: Prompt, plan: SearchPlan) -> Beams:
    """Beam search after a prompt. The tree's slots stay in its cache; nothing waits for the device
    but the question, from the eighth level on, whether any beam goes on.

    Beams are slots behind the prompt: each sees the prompt and its own ancestors, so nothing is
    reordered or copied when beams are.

    Raises:
        ValueError: the vocabulary names tokens that the model's head lacks.
    """
    known = prompt.lm.head.num_tokens
    if known is not None and plan.num_columns > known:
        raise ValueError(
            f"recommend: vocab must name tokens below {known}, the rows of the model's head "
            f"(got {plan.num_columns - 1})"
        )
    batch, device = prompt.ids.shape[0], prompt.ids.device
    scores = torch.zeros(batch, 1, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    sids = slots = fed = nodes.new_empty(batch, 1, 0)
    lengths = prompt.mask.sum(1, keepdim=True)
    hidden = prompt.hidden  # [B * M, H]
    for level, (tokens, rows) in enumerate(plan.levels):
        scores, nodes, parents, codes = trie_step(
            prompt.lm.head(hidden, rows), scores, nodes, plan.trie, tokens, plan.num_beams,
            plan.normalize, plan.temperature, plan.filters,
        )  # fmt: skip
        sids = torch.cat([_of_parents(sids, parents), codes[..., None]], 2)  # [B, M, l + 1]
        slots, fed = _of_parents(slots, parents), _of_parents(fed, parents)
        if level + 1 == len(plan.levels) or (level + 1 >= LONG and not _go_on(codes)):
            break
        # A beam that waits or is dead feeds any token: nothing reads what comes of it.
        ids = plan.column[level][codes.clamp(min=0)].clamp(min=0)
        own = torch.arange(level * plan.num_beams, (level + 1) * plan.num_beams, device=device)
        slots = torch.cat([slots, own.expand(ids.shape)[..., None]], 2)
        fed = torch.cat([fed, ids[..., None]], 2)
        positions = (lengths + level).expand(ids.shape)
        tree = TreeState(slots, prompt.length, prompt.visible)
        hidden = prompt.grow(ids, positions, tree).flatten(0, 1)
    left = len(plan.levels) - sids.shape[2]
    slots, fed = F.pad(slots, (0, left)), F.pad(fed, (0, left))
    return Beams(F.pad(sids, (0, left), value=-1), scores, nodes, slots, fed)


def _go_on(codes: torch.Tensor) -> bool:
    """Whether a beam's SID has not ended; a CUDA graph, which can't ask, records every level."""
    recording = codes.is_cuda and torch.cuda.is_current_stream_capturing()
    return recording or bool((codes >= 0).any())


def _few(tokens: TokenTensors, level: int) -> tuple[TokenTensors, torch.Tensor]:
    """For logits [R, C] of one level's codes alone."""
    column = tokens.column[level]
    there = torch.where(column >= 0, torch.arange(column.numel(), device=column.device), -1)
    # Each level's row alike: only this level's is read.
    few = tokens._replace(
        column=there.expand(tokens.column.shape[0], -1),
        denied=tokens.denied[:0],
        terminator=-1,
        num_columns=column.numel(),
    )
    return few, column.clamp(min=0)


def _of_parents(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """values [B, M, n] of each beam's parent [B, M']: [B, M', n]."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))
