"""Intents that people gave to recommender turns, from files of their own: IARD's for some ReDial
dialogues (Cai and Chen, UMAP 2020; https://github.com/wanlingcai1997/umap_2020_IARD), and the
strategies in INSPIRED's tables.

They find their dialogue by the recommender's words, of which letters and digits count, because many
dialogues have no id in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crs_fast.crs.data.dialogue import OTHER, RECOMMENDER, Dialogue, Turn, merge_turns
from crs_fast.crs.data.lines import read_json

# "@187028 <It  (2017)>" stands where a dialogue of ours has the title.
_TITLE = re.compile(r"@[0-9]+\s*<([^>]*)>")
_LABELS = "top-level intent/action"


def read_iard(path: Path) -> list[list[Turn]]:
    """The turns of every dialogue of `umap2020_IARD_Cai.json`. A recommender turn has one intent,
    the first of its labels that is not OTH: recommend, explain, request or respond.

    Raises:
        ValueError: the file is not IARD's.
    """
    dialogues = read_json(path)
    try:
        return [
            [_iard_turn(utterance) for utterance in dialogue["dialogue_info"].values()]
            for dialogue in dialogues.values()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"load_dataset: {path} must hold IARD's dialogues (got {error!r})"
        ) from error


def _iard_turn(utterance: dict[str, Any]) -> Turn:
    labels = [label.lower() for label in utterance[_LABELS] if label != "OTH"] + [OTHER]
    intent = labels[0] if utterance["role"] == RECOMMENDER else None
    return Turn(utterance["role"], _TITLE.sub(r"\1", utterance["utterance_text"]), intent=intent)


def with_intents(
    dialogues: Iterable[Dialogue], labelled: Iterable[Sequence[Turn]]
) -> tuple[Dialogue, ...]:
    """The dialogues with the intents of `labelled` ones in which the recommender says the same. A
    turn gets its intent where both cut the recommender's words there alike."""
    known = {}
    for turns in labelled:
        whole, places = _places(merge_turns(turns))
        known[whole] = {place: turn.intent for place, turn in places}
    return tuple(_labelled(dialogue, known) for dialogue in dialogues)


def _labelled(dialogue: Dialogue, known: dict[str, dict[tuple[int, int], str | None]]) -> Dialogue:
    whole, places = _places(dialogue.turns)
    if whole not in known:
        return dialogue
    intents = iter([known[whole].get(place) for place, _ in places])
    turns = tuple(
        replace(turn, intent=next(intents)) if turn.role == RECOMMENDER else turn
        for turn in dialogue.turns
    )
    return replace(dialogue, turns=turns)


def _places(turns: Sequence[Turn]) -> tuple[str, list[tuple[tuple[int, int], Turn]]]:
    """All that the recommender says, and where in it each of its turns begins and ends."""
    own = [turn for turn in turns if turn.role == RECOMMENDER]
    words = [re.sub(r"[\W_]", "", turn.text.lower()) for turn in own]
    return "".join(words), list(zip(_spans(map(len, words)), own, strict=True))


def _spans(lengths: Iterable[int]) -> Iterator[tuple[int, int]]:
    at = 0
    for length in lengths:
        yield at, at + length
        at += length
