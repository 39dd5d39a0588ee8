"""Answers every recommender turn of a split with a trained recommender."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import CHAT, REC, likelier_mode
from crs_fast.crs.data.dialogue import Dialogue, Turn
from crs_fast.crs.evaluation.batched_turns import batch_tokens, chunks, walk
from crs_fast.crs.evaluation.messages import context_of, recommending_messages
from crs_fast.crs.evaluation.predictions import (
    PLACEHOLDER,
    MessageRanking,
    Prediction,
    blank_predictions,
)
from crs_fast.crs.joined_beams import JoinedBeams, Scored, join_beams
from crs_fast.crs.sampling import GREEDY, Sampling
from crs_fast.crs.sequence import Layout, SequenceBuilder
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.decode.lm.attention_kernels import attention_of_any_shape
from crs_fast.trie import ItemFilter
from crs_fast.trie.item_filter import stacked


@attention_of_any_shape()
def predict(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    replies: bool = True,
    free_rankings: bool = False,
    messages: bool = True,
    join: JoinedBeams | None = None,
    max_new_tokens: int = 64,
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Answer every recommender turn, with one prefill per dialogue (see `batched_turns`).

    The mode is forced to the gold one, as in the paper, and the mode that the model would have
    chosen is noted beside it. The reply follows the model's own top item, never the gold one. Turns
    that name items only by corrected labels (`Turn.corrected`) are ranked too.

    Args:
        bundle: the system.
        dialogues: a split.
        num_beams, normalize: see `crs_fast.recommend`.
        replies: also write the reply of every turn (greedily).
        free_rankings: also rank at CHAT turns where the model chooses REC, since `note_gold_nll`
            needs the top item there.
        messages: also rank at messages inside a turn that name an item, for the public standard
            (see `crs_fast.crs.evaluation.messages`).
        join: how the candidates of another source join the beams of every ranking; scores are then
            the joined ones.
        tokens_per_batch: the most prompt tokens that are prefilled together, and the most tokens
            of a batch of turns (but at least one dialogue or turn); None chooses by the device.
        progress: show a progress bar.
    """
    predictions, modes = blank_predictions(dialogues), bundle.builder.layout.mode

    def recommends(p: Prediction) -> bool:
        return bool(p.gold_items or dialogues[p.dialogue].turns[p.turn].corrected)

    wanted = [p for p in predictions if modes or replies or recommends(p)]
    contexts = _contexts(bundle, dialogues, wanted, max_new_tokens)
    joining = _joining(
        join, normalize, wanted, [dialogues[p.dialogue].turns[: p.turn] for p in wanted]
    )
    for _, turns, some in _asked_in_batches(
        bundle, contexts, wanted, tokens_per_batch, "dialogues", progress
    ):
        asked = [recommends(p) or (free_rankings and p.chooses_rec) for p in some]
        _rank(bundle, turns, some, asked, num_beams, normalize, joining)
        if replies:
            _reply(bundle, turns, some, max_new_tokens)
    if messages:
        rank_messages(
            bundle,
            dialogues,
            predictions,
            num_beams=num_beams,
            normalize=normalize,
            join=join,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
    return predictions


@attention_of_any_shape()
def rank_messages(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    join: JoinedBeams | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> None:
    """Fill `Prediction.messages` with rankings at the later messages of a turn that name an item,
    from contexts that end inside the turn. All other fields stay."""
    answers = {(p.dialogue, p.turn): p for p in predictions}
    instances = [i for i in recommending_messages(dialogues) if i.message]
    asked = [Prediction(i.dialogue, i.turn, "", list(i.targets), list(i.named)) for i in instances]
    longest = bundle.builder.max_length // 2
    reserve = min(2 * bundle.vocab.num_levels + 8, longest)
    said_before = [context_of(dialogues[i.dialogue], i) for i in instances]
    contexts = [bundle.builder.context(turns, reserve) for turns in said_before]
    joining = _joining(join, normalize, asked, said_before)
    for _, turns, some in _asked_in_batches(
        bundle, contexts, asked, tokens_per_batch, "messages", progress
    ):
        _rank(bundle, turns, some, [True] * len(some), num_beams, normalize, joining)
    for instance, said in zip(instances, asked, strict=True):
        turn = answers[instance.dialogue, instance.turn]
        turn.messages[instance.message] = MessageRanking(
            said.ranking, said.new_ranking, said.scores, said.named
        )


@attention_of_any_shape()
def write_replies(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    *,
    sampling: Sampling = GREEDY,
    only_chosen: bool = False,
    max_new_tokens: int = 64,
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """The predictions with other replies, written as `predict` writes them: in the gold mode, after
    the top item of each ranking. All other fields stay, and so do the predictions given.

    Args:
        predictions: of `dialogues`; those of one dialogue must be adjacent.
        sampling: how the words are chosen; samples are drawn by torch's own random state.
        only_chosen: whether a reply that recommends may name no item but the top one.
    """
    answers = [replace(p) for p in predictions]
    contexts = _contexts(bundle, dialogues, answers, max_new_tokens)
    for _, turns, some in _asked_in_batches(
        bundle, contexts, answers, tokens_per_batch, "replies", progress, notes_modes=False
    ):
        allowed = [p.ranking[:1] if only_chosen and p.gold_items and p.ranking else None
                   for p in some]  # fmt: skip
        filters = stacked([None if a is None else bundle.trie.filter(allow=a) for a in allowed])
        _reply(bundle, turns, some, max_new_tokens, sampling, filters)
    return answers


@attention_of_any_shape()
def predict_in_words(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    max_new_tokens: int = 64,
    tokens_per_batch: int | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Like `predict`, for a layout without the item, where the model's own words name it. The reply
    is written (greedily) up to its first `<BOI>`, and the search starts there. A reply without
    `<BOI>` ranks nothing; if the layout has no mode tokens, it also counts as the choice of
    CHAT."""
    builder, predictions = bundle.builder, blank_predictions(dialogues)
    modes = builder.layout.mode
    contexts = _contexts(bundle, dialogues, predictions, max_new_tokens)
    # Without a mode a prefix is empty, but generation needs a token: the last one of the context.
    cut = 0 if modes else 1
    heads = [context[: len(context) - cut] for context in contexts]
    for members, turns, some in _asked_in_batches(
        bundle, heads, predictions, tokens_per_batch, "own words", progress
    ):
        openings = [
            contexts[i][len(heads[i]) :]
            + (builder.prefix(REC, p.gold_items[0]) if p.gold_items else builder.prefix(CHAT))
            for i, p in zip(members, some, strict=True)
        ]
        said = turns.write(openings, max_new_tokens=max_new_tokens)
        _note(bundle, said, some)
        found = [row for row, tokens in enumerate(said) if builder.begin in tokens]
        for row, p in enumerate(some):
            if not modes:
                p.mode = REC if row in found else CHAT
                p.rec_probability = float(row in found)
        found = [row for row in found if some[row].gold_items]
        if found:
            before = [
                [*heads[members[r]], *openings[r], *said[r][: said[r].index(builder.begin)]]
                for r in found
            ]
            _rank_after(bundle, turns, found, before, some, num_beams, normalize)
    return predictions


def _asked_in_batches(
    bundle: Bundle,
    contexts: Sequence[Sequence[int]],
    predictions: Sequence[Prediction],
    limit: int | None,
    name: str,
    progress: bool,
    notes_modes: bool = True,
) -> Iterator[tuple[list[int], TurnBatch, list[Prediction]]]:
    """Yield batches of turns: their indices, their `TurnBatch`, and their predictions. If the
    layout has a mode, the one that the model would choose is noted in the predictions already,
    unless `notes_modes` is false."""
    recs = [bool(p.gold_items) for p in predictions]
    limit = limit or batch_tokens(bundle.model.device)
    parts = chunks(contexts, [p.dialogue for p in predictions], limit)
    for chunk in show_progress(parts, name, progress):
        for members, turns in walk(bundle, contexts, recs, chunk, limit):
            some = [predictions[i] for i in members]
            if notes_modes and bundle.builder.layout.mode:
                _note_modes(turns, some)
            yield members, turns, some


def _rank_after(
    bundle: Bundle,
    turns: TurnBatch,
    rows: list[int],
    before: Sequence[Sequence[int]],
    predictions: Sequence[Prediction],
    num_beams: int,
    normalize: str,
) -> None:
    """Rank the items that the model's own words lead to; the search starts right after `before`."""
    plain = bundle.builder.with_layout(Layout(mode=False, item=False))
    cache = TurnCache(turns.prompt).branch(rows)
    there = TurnBatch(replace(bundle, builder=plain), before, cache)
    some = [predictions[r] for r in rows]
    _rank(bundle, there, some, [True] * len(rows), num_beams, normalize)


def _note_modes(turns: TurnBatch, predictions: Sequence[Prediction]) -> None:
    chosen = turns.rec_probability.tolist(), turns.intents
    for prediction, chance, intent in zip(predictions, *chosen, strict=True):
        prediction.rec_probability, prediction.intent = chance, intent
        prediction.mode = likelier_mode(chance)


def contexts_of(
    builder: SequenceBuilder,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    reserve: int = 0,
) -> list[list[int]]:
    """The context of each prediction's turn, with room for `reserve` more tokens. The predictions
    of a dialogue must be adjacent."""
    return [
        context
        for number, adjacent in groupby(predictions, key=lambda p: p.dialogue)
        for context in builder.contexts(
            dialogues[number].turns, [p.turn for p in adjacent], reserve
        )
    ]


def _contexts(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    max_new_tokens: int,
) -> list[list[int]]:
    longest = bundle.builder.max_length // 2
    reserve = min(2 * bundle.vocab.num_levels + 8 + max_new_tokens, longest)
    return contexts_of(bundle.builder, dialogues, predictions, reserve)


@dataclass(frozen=True, slots=True)
class _Joining:
    """How candidates join the beams of some predictions. `contexts` has the turns before each, by
    its `id`."""

    join: JoinedBeams
    contexts: dict[int, Sequence[Turn]]


def _joining(
    join: JoinedBeams | None,
    normalize: str,
    predictions: Sequence[Prediction],
    contexts: Sequence[Sequence[Turn]],
) -> _Joining | None:
    if join is None:
        return None
    join.need_exact(normalize)
    return _Joining(join, {id(p): c for p, c in zip(predictions, contexts, strict=True)})


def _rank(
    bundle: Bundle,
    turns: TurnBatch,
    predictions: Sequence[Prediction],
    asked: Sequence[bool],
    num_beams: int,
    normalize: str,
    joining: _Joining | None = None,
) -> None:
    rows = [row for row, wanted in enumerate(asked) if wanted]
    if not rows:
        return

    join, candidates = None, dict[int, Sequence[Scored]]()
    if joining is not None:
        join = joining.join
        contexts = [joining.contexts[id(predictions[row])] for row in rows]
        candidates = dict(zip(rows, join.candidates(contexts), strict=True))

    def search(rows: list[int], filters: list[ItemFilter | None]) -> list[list[Scored]]:
        beams = turns.rank(rows, num_beams=num_beams, normalize=normalize, filters=stacked(filters))
        own = [candidates.get(row, ()) for row in rows]
        lists = join_beams(turns, rows, beams, own, join, filters, normalize)
        return [one[:num_beams] for one in lists]

    for row, items in zip(rows, search(rows, [None] * len(rows)), strict=True):
        p = predictions[row]
        p.ranking, p.scores = [i for i, _ in items], [score for _, score in items]
        if not p.named:  # a filter would change nothing
            p.new_ranking = p.ranking
    rows = [
        row
        for row in rows
        if predictions[row].named and set(predictions[row].gold_items) - set(predictions[row].named)
    ]
    if not rows:
        return
    new = [bundle.trie.filter(deny=set(predictions[row].named)) for row in rows]
    for row, items in zip(rows, search(rows, [*new]), strict=True):
        predictions[row].new_ranking = [i for i, _ in items]


def _reply(
    bundle: Bundle,
    turns: TurnBatch,
    predictions: Sequence[Prediction],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    filters: ItemFilter | None = None,
) -> None:
    builder = bundle.builder
    prefixes = [
        builder.prefix(REC, p.ranking[0]) if p.gold_items and p.ranking else builder.prefix(CHAT)
        for p in predictions
    ]
    written = turns.write(
        prefixes, max_new_tokens=max_new_tokens, filters=filters, **asdict(sampling)
    )
    _note(bundle, written, predictions)


def _note(
    bundle: Bundle, written: Sequence[Sequence[int]], predictions: Sequence[Prediction]
) -> None:
    builder = bundle.builder
    titles = dict.fromkeys((item.item_id for item in bundle.items), PLACEHOLDER)
    for prediction, tokens in zip(predictions, written, strict=True):
        prediction.reply = builder.decode(tokens, titles)
        prediction.reply_items, prediction.invalid_items = builder.sid_fragments(tokens)


def show_progress(values: list[Any], name: str, show: bool) -> Any:
    """The values, with a progress bar if `show` is true."""
    if not show:
        return values
    from tqdm.auto import tqdm

    return tqdm(values, desc=name, leave=False)
