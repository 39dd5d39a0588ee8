"""A system's answers at every recommender turn, in memory and as `predictions.jsonl`. Scoring needs
only this file and the data set, so that any system's figures can be recomputed.

The file has one JSON object per line, and one line per recommender turn (consecutive messages of
one role are one turn):

    {"dialogue": "20001", "turn": 3, "gold": ["i7"], "mode": "rec", "rec_probability": 0.8,
     "ranking": ["i7", "i3"], "scores": [-2.1, -3.4], "new_ranking": ["i3"],
     "reply": "try <movie>", "reply_items": ["i3"], "invalid_items": 0}

`dialogue` is the data set's id of the dialogue and `turn` the index among its turns. Every
recommender turn of a dialogue must be there. `gold` is for human readers; scoring takes the targets
from the data set. All other fields may be null or absent:

    mode             "rec" or "chat", the system's own choice; if it is missing, "rec" if
                     `rec_probability` is above 0.5
    ranking          items, best first, as if the mode were "rec"; if missing, it counts as empty
    new_ranking      the same from a search without the items named before; if missing, `ranking`
                     without them
    scores           natural logarithms of the probabilities of `ranking`'s items, needed only for
                     fusing the ranking with another
    reply            text, with `<movie>` for every item
    reply_items      the items that the reply names
    intent           the purpose of the turn, finer than its mode, by the data set's names
    gold_nll         {"gold": [nats, words], "own": [nats, words]}, the negative log-likelihood of
                     the gold reply's word tokens and their number, after the gold mode and item and
                     after the system's own; perplexity is over the turns that have it

If a turn joins several messages and the second one (message 1) or a later one names an item, the
public standard (`sigir_standard.py`) needs a ranking at that message too, from a context that ends
with the message before it:

    "messages": {"1": {"ranking": ["i3"], "new_ranking": ["i3"], "scores": [-2.1]}}

It may be absent, as in older files; then the turn's own ranking takes its place.

`crs-fast score --template FILE --data DATA` writes every line of a split, with all fields but the
first three left to fill in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crs_fast.crs.control_tokens import MODES, REC, likelier_mode
from crs_fast.crs.data.dialogue import Dialogue, Item, need_distinct_ids
from crs_fast.crs.data.lines import json_object, read_lines, write_lines
from crs_fast.crs.evaluation.messages import recommending_messages
from crs_fast.crs.evaluation.targets import recommender_turns

PLACEHOLDER = "<movie>"
Nll = tuple[float, int]  # nats, tokens


@dataclass(slots=True)
class MessageRanking:
    """The system's ranking between two messages of a turn. `ranking`, `new_ranking` and `scores`
    are as in `Prediction`. `named` are the items of all earlier messages; the file does not hold
    them."""

    ranking: list[str] | None = None
    new_ranking: list[str] | None = None
    scores: list[float] | None = None
    named: list[str] = field(default_factory=list, compare=False)


@dataclass(slots=True)
class Prediction:
    """The answer at one recommender turn.

    dialogue, turn: indices into the split; dialogue_id: the data set's id
    gold_items: distinct items of the gold reply; empty for a CHAT turn
    named: items of all earlier turns
    mode: the system's own choice; None if it chooses none
    rec_probability: the system's probability of REC against CHAT; None if it gives none
    ranking: items, best first, as if the mode were REC; None if nothing was ranked
    new_ranking: the same with named items filtered out of the search
    scores: log-probabilities of `ranking`'s items; None if the system gives none
    reply, gold_reply: text with `<movie>` for every item; None if no reply was written
    reply_items: the items that the reply names
    invalid_items: number of SID fragments in the reply that are no item
    intent, gold_intent: the system's own intent and the data set's; None if there is none
    gold_nll: NLL and number of the gold reply's word tokens, after "gold" or "own" mode and item;
        None if they were not scored
    messages: rankings at the later messages of the turn that name an item, by message
    """

    dialogue: int
    turn: int
    dialogue_id: str
    gold_items: list[str]
    named: list[str]
    mode: str | None = None
    rec_probability: float | None = None
    ranking: list[str] | None = None
    new_ranking: list[str] | None = None
    scores: list[float] | None = None
    reply: str | None = None
    gold_reply: str = ""
    reply_items: list[str] = field(default_factory=list)
    invalid_items: int = 0
    intent: str | None = None
    gold_intent: str | None = None
    gold_nll: dict[str, Nll] | None = None
    messages: dict[int, MessageRanking] = field(default_factory=dict)

    @property
    def chooses_rec(self) -> bool:
        return self.mode == REC

    def without_named(self) -> list[str]:
        """The ranking of the new-only protocol."""
        if self.new_ranking is not None:
            return self.new_ranking
        return [item for item in self.ranking or [] if item not in self.named]


def blank_predictions(dialogues: Sequence[Dialogue]) -> list[Prediction]:
    """An empty prediction for every recommender turn, in order."""
    later: dict[tuple[int, int], dict[int, MessageRanking]] = defaultdict(dict)
    for said in recommending_messages(dialogues):
        if said.message:
            blank = MessageRanking(named=list(said.named))
            later[said.dialogue, said.turn][said.message] = blank
    return [
        Prediction(
            turn.dialogue,
            turn.turn,
            dialogues[turn.dialogue].dialogue_id,
            list(turn.targets),
            list(turn.named),
            gold_reply=dialogues[turn.dialogue].turns[turn.turn].with_placeholder(PLACEHOLDER),
            gold_intent=dialogues[turn.dialogue].turns[turn.turn].intent,
            messages=later.get((turn.dialogue, turn.turn), {}),
        )
        for turn in recommender_turns(dialogues)
    ]


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write a `predictions.jsonl`.

    Raises:
        ValueError: two dialogues have one id, by which the file names them.
    """
    owners: dict[str, int] = {}
    for p in predictions:
        if owners.setdefault(p.dialogue_id, p.dialogue) != p.dialogue:
            raise ValueError(
                f"write_predictions: dialogue_id must be given once (got {p.dialogue_id!r} again)"
            )
    write_lines(
        path,
        (
            {
                "dialogue": p.dialogue_id,
                "turn": p.turn,
                "gold": p.gold_items,
                "mode": p.mode,
                "rec_probability": p.rec_probability,
                "ranking": p.ranking,
                "new_ranking": p.new_ranking,
                **({"scores": [round(s, 4) for s in p.scores]} if p.scores is not None else {}),
                "reply": p.reply,
                "reply_items": p.reply_items,
                "invalid_items": p.invalid_items,
                **({"intent": p.intent} if p.intent else {}),
                **({"gold_nll": p.gold_nll} if p.gold_nll else {}),
                **({"messages": _message_records(p)} if p.messages else {}),
            }
            for p in predictions
        ),
    )


def _message_records(prediction: Prediction) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for message, said in prediction.messages.items():
        record = {"ranking": said.ranking, "new_ranking": said.new_ranking}
        scores = {} if said.scores is None else {"scores": [round(s, 4) for s in said.scores]}
        records[str(message)] = {**record, **scores}
    return records


def read_predictions(
    path: str | Path, dialogues: Sequence[Dialogue], items: Iterable[Item]
) -> list[Prediction]:
    """Read a `predictions.jsonl` for a split, or for some whole dialogues of it.

    Args:
        items: the catalogue; a ranking may name only its items.

    Raises:
        ValueError: a line is malformed, a turn is not in the split or occurs twice, a recommender
            turn is missing from a dialogue that the file has, or two dialogues have one id.
    """
    need_distinct_ids(dialogues, "read_predictions")
    catalogue = {item.item_id for item in items}
    blank = {(p.dialogue_id, p.turn): p for p in blank_predictions(dialogues)}
    filled: set[tuple[str, int]] = set()

    def parse(line: str) -> tuple[str, int]:
        record = json_object(line)
        key = (str(record["dialogue"]), record["turn"])
        if key not in blank:
            raise ValueError(f"dialogue and turn must be a recommender turn of the split {key}")
        if key in filled:
            raise ValueError(f"a turn must stand once {key}")
        filled.add(key)
        _fill(blank[key], record, catalogue)
        return key

    answered = {dialogue for dialogue, _ in read_lines(Path(path), parse)}
    missing = [key for key in blank if key[0] in answered and key not in filled]
    if missing:
        raise ValueError(
            f"read_predictions: {path} must hold every recommender turn of its dialogues "
            f"(got none for {missing[0]}, and {len(missing) - 1} more)"
        )
    return [p for key, p in blank.items() if key in filled]


_PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mode": (f"one of {MODES}", lambda v: v in MODES),
    "rec_probability": ("a number in [0, 1]", lambda v: type(v) in (int, float) and 0 <= v <= 1),
    "reply": ("a string", lambda v: isinstance(v, str)),
    "invalid_items": ("an integer of at least 0", lambda v: type(v) is int and v >= 0),
    "intent": ("a string", lambda v: isinstance(v, str)),
}


def _fill(prediction: Prediction, record: dict[str, Any], catalogue: Collection[str]) -> None:
    for name, (expected, good) in _PLAIN.items():
        value = record.get(name)
        if value is None:
            continue
        if not good(value):
            raise ValueError(f"{name} must be {expected} or null (got {value!r})")
        setattr(prediction, name, value)
    if prediction.mode is None and prediction.rec_probability is not None:
        prediction.mode = likelier_mode(prediction.rec_probability)
    for name in ("ranking", "new_ranking"):
        setattr(prediction, name, _item_ids(name, record.get(name), catalogue))
    prediction.scores = _scores(record.get("scores"), prediction.ranking or [])
    prediction.reply_items = _item_ids("reply_items", record.get("reply_items"), catalogue) or []
    prediction.gold_nll = _gold_nll(record.get("gold_nll"))
    _fill_messages(prediction, record.get("messages") or {}, catalogue)


def _fill_messages(prediction: Prediction, value: Any, catalogue: Collection[str]) -> None:
    known = {str(message): said for message, said in prediction.messages.items()}
    if not isinstance(value, dict) or not all(isinstance(said, dict) for said in value.values()):
        raise ValueError(f"messages must map messages to their rankings (got {value!r})")
    if odd := [message for message in value if message not in known]:
        raise ValueError(
            f"messages must be later ones of the turn that name an item, {list(known)} "
            f"(got {odd[0]!r})"
        )
    for message, said in value.items():
        for name in ("ranking", "new_ranking"):
            setattr(known[message], name, _item_ids(name, said.get(name), catalogue))
        known[message].scores = _scores(said.get("scores"), known[message].ranking or [])


def _item_ids(name: str, value: Any, catalogue: Collection[str]) -> list[str] | None:
    """The value as ids of the catalogue; those of a ranking must be distinct."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of item ids or null (got {value!r})")
    odd = [item for item in value if not isinstance(item, str) or item not in catalogue]
    if odd:
        raise ValueError(f"{name} must hold item ids of the catalogue, as strings (got {odd[0]!r})")
    if name != "reply_items" and len(set(value)) != len(value):
        raise ValueError(
            f"{name} must name an item once (got {len(value) - len(set(value))} twice)"
        )
    return value


def _scores(value: Any, ranking: list[str]) -> list[float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or not all(-math.inf < v <= 0 for v in value):
        raise ValueError(f"scores must be logarithms of probabilities or null (got {value!r})")
    if len(value) != len(ranking):
        raise ValueError(
            f"scores must be one for each item of ranking (got {len(value)} for {len(ranking)})"
        )
    return [float(v) for v in value]


def _gold_nll(value: Any) -> dict[str, Nll] | None:
    if value is None:
        return None
    try:
        found = {name: (float(nats), words) for name, (nats, words) in value.items()}
        good = found.keys() == {"gold", "own"} and all(
            0 <= nats < math.inf and isinstance(words, int) and words >= 0
            for nats, words in found.values()
        )
    except (AttributeError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            'gold_nll must be {"gold": [nats, words], "own": [nats, words]}, each at least 0, '
            f"or null (got {value!r})"
        )
    return found
