"""Scores the gold replies with a recommender: the log-likelihoods from which perplexity is made."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import new_tokens
from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.evaluation.batched_turns import batch_tokens
from crs_fast.crs.evaluation.predict import show_progress
from crs_fast.crs.evaluation.predictions import Nll, Prediction
from crs_fast.crs.sequence import Instance
from crs_fast.crs.training.packing import (
    IGNORE,
    Collate,
    Packed,
    batches,
    packing_is_exact,
    reading,
    token_losses,
)

Tokens = tuple[int, ...]
WAYS = {"gold": False, "own": True}  # whether mode and item are the model's own


@torch.no_grad()
def note_gold_nll(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    *,
    progress: bool = True,
) -> None:
    """Note in each prediction, as `gold_nll`, the negative log-likelihood of the gold reply's word
    tokens, and the number of these tokens. "gold" is after the gold mode and the first gold item;
    "own" is after the model's own mode and top item, so `ranking` must be there wherever the model
    chooses REC. If the layout has no mode or no item, it is left out.

    Each turn has one reply. SID tokens, control tokens and end-of-sequence are not counted.
    """
    groups = itertools.groupby(predictions, key=lambda p: p.dialogue)
    parts = [(dialogues[d], list(turns)) for d, turns in groups]
    if not parts:
        return
    longest, several = max(parts, key=lambda part: len(part[1]))
    few = [_reply_instance(bundle, longest, turn, False) for turn in several]
    packed = packing_is_exact(bundle.model, few, bundle.builder.max_length)
    arrange, together = reading(packed)
    packs: list[Packed] = []
    found: list[tuple[Prediction, dict[str, Instance]]] = []
    for dialogue, turns in parts:
        mine = [
            {name: _reply_instance(bundle, dialogue, turn, own) for name, own in WAYS.items()}
            for turn in turns
        ]
        found += zip(turns, mine, strict=True)
        # If the model chose the gold mode and item, both instances are equal and scored once.
        once = {instance for ways in mine for instance in ways.values()}
        ordered = sorted(once, key=lambda i: (i.turn_index, i.response))
        packs += arrange(ordered, 4 * bundle.builder.max_length)
    # A quarter, since the logits of every token of a reply must fit in memory.
    limit = max(batch_tokens(bundle.model.device) // 4, 1)
    scored: dict[tuple[Tokens, Tokens], Nll] = {}
    for some in show_progress(batches(packs, limit, range(len(packs))), "gold replies", progress):
        scored |= _score(bundle, some, together)
    for turn, ways in found:
        turn.gold_nll = {name: scored[i.context, i.response] for name, i in ways.items()}


def _score(
    bundle: Bundle, packs: Sequence[Packed], together: Collate
) -> Iterable[tuple[tuple[Tokens, Tokens], Nll]]:
    """Yield, for the (context, response) of every branch, the NLL and the number of the response's
    word tokens."""
    special = torch.tensor([*new_tokens(bundle.vocab, bundle.control), bundle.builder.eos])
    batch = together(packs, bundle.builder.eos)
    batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], special), IGNORE)
    rows, columns = (batch["labels"] != IGNORE).nonzero(as_tuple=True)
    most = max(len(packed.branches) for packed in packs)
    # A sequence that is not packed has one branch.
    branch = batch["branch"][rows, columns] - 1 if "branch" in batch else torch.zeros_like(rows)
    place = rows * most + branch
    sums = torch.zeros(len(packs) * most)
    if len(rows):
        on_device = {k: v.to(bundle.model.device) for k, v in batch.items()}
        sums.index_add_(0, place, token_losses(bundle.model, on_device).cpu())
    words = torch.bincount(place, minlength=len(sums))
    for row, packed in enumerate(packs):
        for at, (length, response) in enumerate(packed.branches, start=row * most):
            yield (packed.trunk[:length], response), (float(sums[at]), int(words[at]))


def _reply_instance(
    bundle: Bundle, dialogue: Dialogue, prediction: Prediction, own: bool
) -> Instance:
    builder, turn = bundle.builder, dialogue.turns[prediction.turn]
    item = prediction.gold_items[0] if prediction.gold_items else None
    if own:
        turn, item = replace(turn, intent=prediction.intent), _own_item(bundle, prediction)
    response = builder.response(turn, item)
    context = builder.context(dialogue.turns[: prediction.turn], reserve=len(response))
    return Instance(prediction.turn, item, tuple(context), tuple(response))


def _own_item(bundle: Bundle, prediction: Prediction) -> str | None:
    if not prediction.chooses_rec:
        return None
    if prediction.ranking:
        return prediction.ranking[0]
    # A layout without the item writes only the mode, and any item stands for REC.
    return None if bundle.builder.layout.item else bundle.items[0].item_id
