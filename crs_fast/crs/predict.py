"""What a trained recommender answers at every recommender turn of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from crs_fast.crs.bundle import Bundle
from crs_fast.crs.dialogue import Dialogue
from crs_fast.crs.packing import read_after
from crs_fast.crs.predictions import PLACEHOLDER, Prediction, blank_predictions
from crs_fast.crs.sequence import CHAT, REC, Layout
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
    builder, predictions = bundle.builder, blank_predictions(dialogues)
    contexts = _contexts(bundle, dialogues, predictions, max_new_tokens)
    if builder.layout.mode:
        _choose_modes(bundle, predictions, contexts, tokens_per_batch)
    groups = list(_batches(predictions, contexts, tokens_per_batch))
    for group in show_progress(groups, "turns", progress):
        mine = [predictions[i] for i in group]
        asked = [bool(p.gold_items) or (free_rankings and p.chooses_rec) for p in mine]
        if not (replies or any(asked)):
            continue
        turns = TurnBatch(bundle, [contexts[i] for i in group])
        _rank(bundle, turns, mine, asked, num_beams, normalize)
        if replies:
            _reply(bundle, turns, mine, max_new_tokens)
    return predictions


def predict_in_words(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    max_new_tokens: int = 64,
    tokens_per_batch: int = 8192,
    progress: bool = True,
) -> list[Prediction]:
    """`predict` for a layout without items, where the item is what the model's own words come to:
    the reply is written (greedy) up to its first `<BOI>` and the search starts there. A reply
    without one ranks nothing, and where the layout has no mode tokens it is also the choice of
    CHAT."""
    builder, predictions = bundle.builder, blank_predictions(dialogues)
    plain = replace(bundle, builder=builder.with_layout(Layout(mode=False, item=False)))
    contexts = _contexts(bundle, dialogues, predictions, max_new_tokens)
    if builder.layout.mode:
        _choose_modes(bundle, predictions, contexts, tokens_per_batch)
    groups = list(_batches(predictions, contexts, tokens_per_batch))
    for group in show_progress(groups, "own words", progress):
        mine = [predictions[i] for i in group]
        # A prefix may have no token, and generation must be fed one: the context's last.
        prefixes = [
            [contexts[i][-1], *(builder.prefix(REC, p.gold_items[0]) if p.gold_items
                                else builder.prefix(CHAT))]
            for i, p in zip(group, mine, strict=True)
        ]  # fmt: skip
        turns = TurnBatch(bundle, [contexts[i][:-1] for i in group])
        said = turns.write(prefixes, max_new_tokens=max_new_tokens)
        _note(bundle, said, mine)
        found = [row for row, tokens in enumerate(said) if builder.begin in tokens]
        for row, p in enumerate(mine):
            if not builder.layout.mode:
                p.rec_probability = float(row in found)
        found = [row for row in found if mine[row].gold_items]
        if found:
            stops = [said[r].index(builder.begin) for r in found]
            before = [
                [*contexts[group[r]][:-1], *prefixes[r], *said[r][:stop]]
                for r, stop in zip(found, stops, strict=True)
            ]
            turns = TurnBatch(plain, before)
            everyone = [True] * len(found)
            _rank(plain, turns, [mine[r] for r in found], everyone, num_beams, normalize)
    return predictions


def _contexts(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    max_new_tokens: int,
) -> list[list[int]]:
    builder = bundle.builder
    reserve = min(2 * bundle.vocab.num_levels + 8 + max_new_tokens, builder.max_length // 2)
    return [
        builder.context(dialogues[p.dialogue].turns[: p.turn], reserve=reserve) for p in predictions
    ]


def _choose_modes(
    bundle: Bundle,
    predictions: Sequence[Prediction],
    contexts: Sequence[Sequence[int]],
    tokens_per_batch: int,
) -> None:
    pair = [bundle.control.chat, bundle.control.rec]
    groups = [p.dialogue for p in predictions]
    chances = read_after(
        bundle.model, contexts, groups, lambda logits: logits[:, pair].softmax(1)[:, 1],
        tokens_per_batch, bundle.builder.eos,
    )  # fmt: skip
    for prediction, chance in zip(predictions, chances.tolist(), strict=True):
        prediction.rec_probability = chance


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
    prefixes = [
        builder.prefix(REC, p.ranking[0]) if p.gold_items and p.ranking else builder.prefix(CHAT)
        for p in predictions
    ]
    _note(bundle, turns.write(prefixes, max_new_tokens=max_new_tokens), predictions)


def _note(
    bundle: Bundle, written: Sequence[Sequence[int]], predictions: Sequence[Prediction]
) -> None:
    builder = bundle.builder
    titles = dict.fromkeys((item.item_id for item in bundle.items), PLACEHOLDER)
    for prediction, tokens in zip(predictions, written, strict=True):
        prediction.reply = builder.decode(tokens, titles)
        prediction.reply_items, prediction.invalid_items = builder.sid_fragments(tokens)


def show_progress(values: list[Any], name: str, show: bool) -> Any:
    """The values, with a progress bar where it should show."""
    if not show:
        return values
    from tqdm.auto import tqdm

    return tqdm(values, desc=name, leave=False)
