"""Replies by `model.generate`, of models that can't read a token tree or where a reply does not fit
into the attention window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.reply import placed
from crs_fast.crs.sampling import Sampling
from crs_fast.decode import SidLogitsProcessor, left_pad, sequential, stand_in
from crs_fast.trie import Grammar, ItemFilter


def written_sequentially(
    bundle: Bundle,
    contexts: Sequence[Sequence[int]],
    prefixes: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    filters: ItemFilter | None,
) -> list[list[int]]:
    """See `TurnBatch.write`."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    rows_of_tokens = [[*c, *p] for c, p in zip(contexts, prefixes, strict=True)]
    ids, mask = left_pad(rows_of_tokens, bundle.builder.eos)
    ids, mask = ids.to(bundle.model.device), mask.to(bundle.model.device)
    start, trie = ids.shape[1], placed(bundle.trie, ids.device)
    how: dict[str, Any] = (
        dict(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
        if sampling.do_sample
        else dict(do_sample=False)
    )
    config = GenerationConfig(
        max_new_tokens=max_new_tokens + bundle.vocab.num_levels + 1,
        eos_token_id=bundle.builder.eos,
        pad_token_id=bundle.builder.eos,
        suppress_tokens=bundle.control.tokens,
        **how,
    )
    written: list[list[int]] = [[] for _ in prefixes]
    # A stand-in, because the model's own generation_config must change nothing here.
    lm = stand_in(bundle.model)
    for rows, use_cache in _batches(bundle, mask):
        processor = SidLogitsProcessor(
            trie, bundle.vocab, None if filters is None else filters.select(rows)
        )
        config.use_cache = use_cache
        out = lm.generate(
            input_ids=ids[rows],
            attention_mask=mask[rows].long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList(
                [_LongEnough(start + max_new_tokens, processor.grammar)]
            ),
        )
        for row, tokens in zip(rows, out[:, start:].tolist(), strict=True):
            eos = bundle.builder.eos
            written[row] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return written


def _batches(bundle: Bundle, mask: torch.Tensor) -> list[tuple[list[int], bool]]:
    """Rows of mask bool [B, P] that `generate` may take together, and whether with a cache."""
    everyone = list(range(mask.shape[0]))
    way = sequential(bundle.model)
    if way.pads or bool(mask.all()):
        return [(everyone, way.use_cache)]
    return [([row], way.use_cache) for row in everyone]


class _LongEnough:
    """Stops a reply at `length` tokens or, if a SID is open there, as soon as it is closed."""

    def __init__(self, length: int, grammar: Grammar) -> None:
        self.length, self.grammar = length, grammar

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] < self.length:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return ~self.grammar.read(input_ids).inside
