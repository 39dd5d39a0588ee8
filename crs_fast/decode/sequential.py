"""Beams that are sequences of their own, for models and prompts that allow no token tree.

by Hugging Face beam search    with the model's cache, where a probe finds that right
by plain forward passes        without a cache, everywhere else: slower, and right by definition
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import trie_step, trie_walk
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

from .fallback import SequentialBeams, beams_by_generate
from .lm.capability import TOLERANCE, NotNumbersError, sliding_window, state_key
from .lm.model_state import ModelState, Sequential
from .lm.stand_in import input_device, stand_in, unwrapped
from .output import RecommendOutput, refuse_not_numbers
from .search_plan import SearchPlan
from .search_request import SearchRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = Sequential(use_cache=False, pads=False)
_WAYS = (Sequential(use_cache=True, pads=True), Sequential(use_cache=True, pads=False))
# Logits that are computed at once where a model computes those of every position.
_MOST_LOGITS = 1 << 26
# The probe's prompts reach past attention windows up to this.
_PROBED_WINDOW = 64


@torch.no_grad()
def sequential_beams(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    request: SearchRequest,
    way: Sequential | None = None,
) -> RecommendOutput:
    """`recommend` without a token tree.

    Args:
        ids, mask: int64 and bool [B, P]; padding on either side.
        way: None asks `sequential`.
    """
    way, trie = way or sequential(model), request.trie
    rows = [row[seen] for row, seen in zip(ids.cpu(), mask.cpu(), strict=True)]
    codes, totals, not_numbers = _beams(stand_in(model), rows, request, way)
    refuse_not_numbers(not_numbers)
    nodes = trie_walk(trie.tensors, codes.flatten(0, 1)).view(totals.shape)
    return RecommendOutput.of(trie, codes, nodes, totals, request.filters, request.most_items)


def sequential(model: PreTrainedModel) -> Sequential:
    """How `model` decodes beams without a tree. On its first use the scores of a small catalogue
    after prompts of unequal length are compared with those of plain forward passes.

    Raises:
        ValueError: the model is not causal, or has no head.
    """
    model = unwrapped(model)
    state, key = ModelState.of(model), state_key(model)
    if key not in state.sequential:
        with state.lock:
            if key not in state.sequential:
                way = _probed(model)
                if way is None:
                    return PLAIN
                state.sequential[key] = way
    way = state.sequential[key]
    if not way.use_cache:
        state.warn_once(
            f"{type(model).__name__}'s cache gives other scores than plain forward passes in "
            "Hugging Face beam search; the latter are used, at the cost of a prefill per level"
        )
    return way


@torch.no_grad()
def _probed(model: Any) -> Sequential | None:
    """The fastest way that is right; None where logits are no numbers."""
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"recommend: model must have a head that gives logits (got {type(model).__name__})"
        )
    lm = stand_in(model)
    with torch.autocast(input_device(model).type, enabled=False):
        for way in _WAYS:
            try:
                if _is_right(lm, way):
                    return way
            except NotNumbersError:
                return None
            except Exception:
                # Whatever a model's code raises, the answer is the same: not in this way.
                continue
        _check_causal(lm)
    return PLAIN


def _check_causal(lm: Any) -> None:
    """
    Raises:
        ValueError: what follows a token changes its logits, as in models that fill gaps.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    vocab_size = lm.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (2, 8), generator=generator, device="cpu")
    ids = torch.stack([ids[0], torch.cat([ids[0, :5], ids[1, 5:]])]).to(input_device(lm))
    before = lm(input_ids=ids, use_cache=False).logits.float()[:, -4]  # after the fifth token
    error = float((before[0] - before[1]).abs().max() / before.std().clamp(min=1e-6))
    if error > TOLERANCE.get(lm.dtype, 1e-3):
        raise ValueError(
            f"recommend: model must be causal (got {type(unwrapped(lm)).__name__}, whose logits "
            "change with the tokens that follow)"
        )


def _is_right(lm: Any, way: Sequential) -> bool:
    vocab_size, device = lm.config.get_text_config().vocab_size, input_device(lm)
    generator = torch.Generator("cpu").manual_seed(0)
    # A window shows in prompts that are longer.
    longest = min(sliding_window(lm) or 0, _PROBED_WINDOW) + 5
    tokens = torch.randperm(vocab_size, generator=generator, device="cpu")[:6]
    prompts = torch.randint(vocab_size, (2, longest), generator=generator, device="cpu")
    rows = [prompts[0], prompts[1, 2:]]
    codes = torch.arange(2, device="cpu")
    trie = SidTrie.from_sids(torch.cartesian_prod(codes, codes, codes))
    vocab = SidVocab(tokens.view(3, 2))
    request = SearchRequest(trie.to(device), vocab, batch=2, num_beams=8)
    found = _beams(lm, rows, request, way)
    for row, sids, scores in zip(rows, found.codes.cpu(), found.scores.cpu(), strict=True):
        paths = torch.cat([row.expand(8, -1), vocab.encode(sids)], 1).to(device)
        logits = lm(input_ids=paths, use_cache=False).logits[:, -4:-1].float().cpu()
        if not bool(logits.isfinite().all()):
            raise NotNumbersError
        expected = logits.log_softmax(2).gather(2, paths.cpu()[:, -3:, None]).sum((1, 2))
        error = float((scores - expected).abs().max() / logits.std().clamp(min=1e-6))
        if not error <= TOLERANCE.get(lm.dtype, 1e-3) * trie.num_levels:
            return False
    return True


def _beams(
    lm: Any, rows: list[torch.Tensor], request: SearchRequest, way: Sequential
) -> SequentialBeams:
    """The beams after prompts int64 [n] on the CPU, by a stand-in of a model."""
    together = list(range(len(rows)))
    groups = [together]
    if not way.use_cache:
        groups = [[row] for row in together]
    elif not way.pads:
        lengths = [row.numel() for row in rows]
        groups = [[row for row in together if lengths[row] == n] for n in sorted({*lengths})]
    search = beams_by_generate if way.use_cache else _plain_beams
    parts = [search(lm, [rows[i] for i in group], _of_rows(request, group)) for group in groups]
    order = torch.tensor([i for group in groups for i in group], device=parts[0].codes.device)
    back = order.argsort()
    return SequentialBeams(
        torch.cat([part.codes for part in parts])[back],
        torch.cat([part.scores for part in parts])[back],
        {
            group[i]
            for group, part in zip(groups, parts, strict=True)
            for i in part.not_numbers
        },
    )  # fmt: skip


def _of_rows(request: SearchRequest, rows: list[int]) -> SearchRequest:
    """The same request for some of its prompts."""
    filters: ItemFilter | None = request.filters
    if filters is not None and filters.num_requests > 1:
        filters = filters.select(rows)
    return replace(request, batch=len(rows), filters=filters)


def _plain_beams(lm: Any, rows: list[torch.Tensor], request: SearchRequest) -> SequentialBeams:
    """Beams after one prompt: every level reads every beam's whole sequence again."""
    [prompt] = rows
    plan, device = SearchPlan.of(request), request.trie.device
    scores = torch.zeros(1, 1, dtype=torch.float32, device=device)
    nodes = torch.zeros(1, 1, dtype=torch.int64, device=device)
    sids = tokens = torch.zeros(1, 0, dtype=torch.int64, device=device)
    not_numbers: set[int] = set()
    for level, (columns, computed) in enumerate(plan.levels):
        prompts = prompt.to(device).expand(tokens.shape[0], -1)
        logits = _last_logits(lm, torch.cat([prompts, tokens], 1)).to(device)
        if computed is not None:
            logits = logits[:, computed]
        goes_on = (scores[0] > float("-inf")) & (nodes[0] >= 0)
        if level:
            goes_on &= sids[:, -1] >= 0
        if bool((goes_on & ~logits.amax(1).isfinite()).any()):
            not_numbers.add(0)
        scores, nodes, parents, codes = trie_step(
            logits,
            scores,
            nodes,
            plan.trie,
            columns,
            num_beams=plan.num_beams,
            normalize=plan.normalize,
            temperature=plan.temperature,
            filters=plan.filters,
        )
        sids = torch.cat([sids[parents[0]], codes[0, :, None]], 1)
        # A beam that waits or is dead feeds any token: nothing reads what comes of it.
        fed = plan.token_of_code[level][codes[0].clamp(min=0)].clamp(min=0)
        tokens = torch.cat([tokens[parents[0]], fed[:, None]], 1)
    return SequentialBeams(sids[None], scores, not_numbers)


def _last_logits(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits after ids int64 [R, T]: [R, V]."""
    base, device = unwrapped(lm), input_device(lm)
    rows, arguments = len(ids), {}
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        arguments = dict(logits_to_keep=1)
    else:
        vocab_size = base.config.get_text_config().vocab_size
        rows = max(1, _MOST_LOGITS // (vocab_size * ids.shape[1]))
    parts: Iterable[torch.Tensor] = ids.to(device).split(rows)
    return torch.cat(
        [lm(input_ids=part, use_cache=False, **arguments).logits[:, -1] for part in parts]
    )
