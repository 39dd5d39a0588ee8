"""How likely a recommender finds the gold replies: what perplexity is made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from crs_fast.crs.bundle import Bundle
from crs_fast.crs.dialogue import Dialogue
from crs_fast.crs.packing import IGNORE, packing_is_exact, reading, token_losses
from crs_fast.crs.predict import show_progress
from crs_fast.crs.predictions import Nll, Prediction
from crs_fast.crs.sequence import Instance
from crs_fast.crs.token_rows import new_tokens

Tokens = tuple[int, ...]


@torch.no_grad()
def note_gold_nll(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    *,
    progress: bool = True,
) -> None:
    """Note in each prediction, as `gold_nll`, the negative log-likelihood of the gold reply over
    its word tokens, and their count: "gold", after the gold mode and first gold item; "own", after
    the model's own mode and top item (`ranking` must be there wherever the model chooses REC).
    What a layout lacks of mode and item is left out.

    One reply a turn. SID tokens, control tokens and end-of-sequence are not counted.
    """
    groups = itertools.groupby(predictions, key=lambda p: p.dialogue)
    parts = [(dialogues[d], list(turns)) for d, turns in groups]
    if not parts:
        return
    longest, several = max(parts, key=lambda part: len(part[1]))
    few = [_reply_instance(bundle, longest, turn, False) for turn in several]
    packed = packing_is_exact(bundle.model, few, bundle.builder.max_length)
    for dialogue, turns in show_progress(parts, "gold replies", progress):
        ways = {
            "gold": [_reply_instance(bundle, dialogue, turn, False) for turn in turns],
            "own": [_reply_instance(bundle, dialogue, turn, True) for turn in turns],
        }
        # Where the model chose as the gold reply did, the two are one and scored once.
        scored = _score(bundle, {i for instances in ways.values() for i in instances}, packed)
        for at, turn in enumerate(turns):
            found = {name: instances[at] for name, instances in ways.items()}
            turn.gold_nll = {name: scored[i.context, i.response] for name, i in found.items()}


def _score(
    bundle: Bundle, instances: set[Instance], packed: bool
) -> dict[tuple[Tokens, Tokens], Nll]:
    """(context, response) -> the response's word tokens' NLL and count, of one dialogue."""
    arrange, together = reading(packed)
    special = torch.tensor([*new_tokens(bundle.vocab, bundle.control), bundle.builder.eos])
    ordered = sorted(instances, key=lambda i: (i.turn_index, i.response))
    scored: dict[tuple[Tokens, Tokens], Nll] = {}
    for sequence in arrange(ordered, 4 * bundle.builder.max_length):
        batch = together([sequence], bundle.builder.eos)
        batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], special), IGNORE)
        counted = batch["labels"] != IGNORE
        # A sequence apart has one branch, number 1.
        branch = batch["branch"][counted] if packed else torch.ones_like(batch["labels"])[counted]
        sums = torch.zeros(len(sequence.branches) + 1)
        if bool(counted.any()):
            on_device = {k: v.to(bundle.model.device) for k, v in batch.items()}
            sums.index_add_(0, branch, token_losses(bundle.model, on_device).cpu())
        words = torch.bincount(branch, minlength=len(sums))
        for number, (length, response) in enumerate(sequence.branches, start=1):
            key = (sequence.trunk[:length], response)
            scored[key] = (float(sums[number]), int(words[number]))
    return scored


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
    # Without an item part only the mode is written, and any item says that it is REC.
    return None if bundle.builder.layout.item else bundle.items[0].item_id
