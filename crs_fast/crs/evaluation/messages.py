"""Recommendation targets of single messages, where those of one role are not joined into turns.

An instance is a recommender message that names an item and that some message precedes. Its targets
are the message's distinct items; a target is new ("fresh") when no earlier message, by either role,
named it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crs_fast.crs.data.dialogue import RECOMMENDER, Dialogue, Turn
from crs_fast.crs.evaluation.targets import RecTurn


@dataclass(frozen=True, slots=True)
class RecMessage(RecTurn):
    """`message` counts the messages of the turn from 0; all else as in `RecTurn`, with what the
    earlier messages of the same turn named among `named`."""

    message: int = 0


def recommending_messages(dialogues: Sequence[Dialogue]) -> list[RecMessage]:
    """Every instance, in order."""
    instances = []
    for d, dialogue in enumerate(dialogues):
        named: list[str] = []
        for t, turn in enumerate(dialogue.turns):
            for m, items in enumerate(turn.message_items()):
                if turn.role == RECOMMENDER and items and (t or m):
                    new = tuple(item not in named for item in items)
                    instances.append(RecMessage(d, t, tuple(items), new, tuple(named), m))
                named += items
    return instances


def context_of(dialogue: Dialogue, instance: RecMessage) -> tuple[Turn, ...]:
    """What was said before an instance: whole turns, and the messages of its own turn so far."""
    before = dialogue.turns[: instance.turn]
    if not instance.message:
        return before
    return (*before, dialogue.turns[instance.turn].before(instance.message))
