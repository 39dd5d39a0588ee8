"""How likely a recommender finds the gold replies: what perplexity is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crs_fast.crs.bundle import Bundle
from crs_fast.crs.dialogue import Dialogue
from crs_fast.crs.packing import IGNORE, collate, pack, token_losses
from crs_fast.crs.predict import show_progress
from crs_fast.crs.predictions import Prediction
from crs_fast.crs.sequence import Instance
from crs_fast.crs.token_rows import new_tokens

Nll = tuple[float, int]
Tokens = tuple[int, ...]


@torch.no_grad()
def gold_reply_nll(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    *,
    progress: bool = True,
) -> dict[str, Nll]:
    """Negative log-likelihood of the gold replies over their word tokens, and the token count:
    "gold", after the gold mode and first gold item; "own", after the model's own mode and top
    item (`ranking` must be there wherever the model chooses REC).

    One reply a turn. SID tokens, control tokens and end-of-sequence are not counted.
    """
    totals: dict[str, Nll] = {"gold": (0.0, 0), "own": (0.0, 0)}
    by_dialogue: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        by_dialogue.setdefault(prediction.dialogue, []).append(prediction)
    for d, turns in show_progress(list(by_dialogue.items()), "gold replies", progress):
        arms = {
            "gold": [_reply_instance(bundle, dialogues[d], turn, False) for turn in turns],
            "own": [_reply_instance(bundle, dialogues[d], turn, True) for turn in turns],
        }
        # Where the model chose as the gold reply did, the two are one and scored once.
        scored = _score(bundle, {instance for arm in arms.values() for instance in arm})
        for name, instances in arms.items():
            nll, words = totals[name]
            nll += sum(scored[i.context, i.response][0] for i in instances)
            words += sum(scored[i.context, i.response][1] for i in instances)
            totals[name] = (nll, words)
    return totals


def _score(bundle: Bundle, instances: set[Instance]) -> dict[tuple[Tokens, Tokens], Nll]:
    """(context, response) -> the response's word tokens' NLL and count, of one dialogue."""
    special = torch.tensor([*new_tokens(bundle.vocab, bundle.control), bundle.builder.eos])
    ordered = sorted(instances, key=lambda i: (i.turn_index, i.response))
    scored: dict[tuple[Tokens, Tokens], Nll] = {}
    for packed in pack(ordered, max_tokens=4 * bundle.builder.max_length):
        batch = collate([packed], bundle.builder.eos)
        batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], special), IGNORE)
        counted = batch["labels"] != IGNORE
        sums = torch.zeros(len(packed.branches) + 1)
        if bool(counted.any()):
            on_device = {k: v.to(bundle.model.device) for k, v in batch.items()}
            losses = token_losses(bundle.model, on_device).cpu()
            sums.index_add_(0, batch["branch"][counted], losses)
        words = torch.bincount(batch["branch"][counted], minlength=len(sums))
        for number, (length, response) in enumerate(packed.branches, start=1):
            key = (packed.trunk[:length], response)
            scored[key] = (float(sums[number]), int(words[number]))
    return scored


def _reply_instance(
    bundle: Bundle, dialogue: Dialogue, prediction: Prediction, own: bool
) -> Instance:
    builder, turn = bundle.builder, dialogue.turns[prediction.turn]
    item = prediction.gold_items[0] if prediction.gold_items else None
    if own:
        item = prediction.ranking[0] if prediction.chooses_rec and prediction.ranking else None
    response = builder.response(turn, item)
    context = builder.context(dialogue.turns[: prediction.turn], reserve=len(response))
    return Instance(prediction.turn, item, tuple(context), tuple(response))
