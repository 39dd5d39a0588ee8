"""What a trained recommender answers at every recommender turn of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from crs_fast.crs.bundle import Bundle
from crs_fast.crs.dialogue import Dialogue
from crs_fast.crs.packing import IGNORE, collate, pack, token_losses
from crs_fast.crs.predictions import PLACEHOLDER, Prediction, blank_predictions
from crs_fast.crs.sequence import CHAT, REC, Instance
from crs_fast.crs.token_rows import new_tokens
from crs_fast.crs.turn import TurnBatch
from crs_fast.trie import ItemFilter


def predict(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    replies: bool = True,
    free_rankings: bool = False,
    max_new_tokens: int = 64,
    tokens_per_batch: int = 8192,
    progress: bool = True,
) -> list[Prediction]:
    """Answer every recommender turn.

    The mode is forced to the gold one, as in the paper; the reply follows the model's own top
    item, never the gold one; the mode the model would have chosen is noted beside it.

    Args:
        bundle: the system.
        dialogues: a split.
        num_beams, normalize: see `crs_fast.recommend`.
        replies: also generate the reply of every turn (greedy).
        free_rankings: rank also at CHAT turns where the model chooses REC (for item precision
            and counting in free mode).
        tokens_per_batch: prompt tokens a batch holds at most (one turn at least).
        progress: show a progress bar.
    """
    predictions = blank_predictions(dialogues)
    builder = bundle.builder
    reserve = min(2 * bundle.vocab.num_levels + 8 + max_new_tokens, builder.max_length // 2)
    contexts = [
        builder.context(dialogues[p.dialogue].turns[: p.turn], reserve=reserve) for p in predictions
    ]
    groups = list(_batches(predictions, contexts, tokens_per_batch))
    for group in _progress(groups, "turns", progress):
        turns = TurnBatch(bundle, [contexts[i] for i in group])
        mine = [predictions[i] for i in group]
        for prediction, probability in zip(mine, turns.rec_probability.tolist(), strict=True):
            prediction.rec_probability = probability
        asked = [bool(p.gold_items) or (free_rankings and p.chooses_rec) for p in mine]
        _rank(bundle, turns, mine, asked, num_beams, normalize)
        if replies:
            _reply(bundle, turns, mine, max_new_tokens)
    return predictions


def _batches(
    predictions: Sequence[Prediction], contexts: Sequence[Sequence[int]], limit: int
) -> Iterator[list[int]]:
    """Turns of one gold mode and like length together, at most 32 at a time: beams multiply
    them."""
    order = sorted(
        range(len(contexts)), key=lambda i: (bool(predictions[i].gold_items), len(contexts[i]))
    )
    group: list[int] = []
    for i in order:
        same = not group or bool(predictions[group[0]].gold_items) == bool(
            predictions[i].gold_items
        )
        if group and not (
            same and len(group) < 32 and (len(group) + 1) * len(contexts[i]) <= limit
        ):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _rank(
    bundle: Bundle,
    turns: TurnBatch,
    predictions: Sequence[Prediction],
    asked: Sequence[bool],
    num_beams: int,
    normalize: str,
) -> None:
    rows = [row for row, wanted in enumerate(asked) if wanted]
    if not rows:
        return
    common: dict[str, Any] = dict(num_beams=num_beams, normalize=normalize)
    for row, ids in zip(rows, turns.rank(rows, **common).items, strict=True):
        predictions[row].ranking = [str(i) for i in ids[:num_beams]]
        # Nothing was named: the filter would change nothing.
        predictions[row].new_ranking = predictions[row].ranking
    rows = [
        row
        for row in rows
        if predictions[row].named and set(predictions[row].gold_items) - set(predictions[row].named)
    ]
    if not rows:
        return
    trie = bundle.trie
    filters = ItemFilter.stack([trie.filter(deny=set(predictions[r].named)) for r in rows])
    for row, ids in zip(rows, turns.rank(rows, filters=filters, **common).items, strict=True):
        predictions[row].new_ranking = [str(i) for i in ids[:num_beams]]


def _reply(
    bundle: Bundle, turns: TurnBatch, predictions: Sequence[Prediction], max_new_tokens: int
) -> None:
    builder = bundle.builder
    titles = dict.fromkeys((item.item_id for item in bundle.items), PLACEHOLDER)
    prefixes = [
        builder.prefix(REC, p.ranking[0]) if p.gold_items and p.ranking else builder.prefix(CHAT)
        for p in predictions
    ]
    written = turns.write(prefixes, max_new_tokens=max_new_tokens)
    for prediction, tokens in zip(predictions, written, strict=True):
        prediction.reply = builder.decode(tokens, titles)
        prediction.reply_items, prediction.invalid_items = builder.sid_fragments(tokens)


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
    for d, turns in _progress(list(by_dialogue.items()), "gold replies", progress):
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


def _progress(values: list[Any], name: str, show: bool) -> Any:
    if not show:
        return values
    from tqdm.auto import tqdm

    return tqdm(values, desc=name, leave=False)
