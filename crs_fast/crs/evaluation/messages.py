"""Recommendation targets of single messages, which are not joined into turns.

An instance is a recommender message that names an item and is not the first message. Its targets
are the message's distinct items. A target is new ("fresh") if no earlier message, by either role,
named it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crs_fast.crs.data.dialogue import RECOMMENDER, Dialogue, Turn
from crs_fast.crs.evaluation.targets import RecTurn


@dataclass(frozen=True, slots=True)
class RecMessage(RecTurn):
    """An instance. `message` is its index among the messages of the turn. The other fields are as
    in `RecTurn`, but `named` also has the items of the turn's earlier messages."""

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
    """The turns before an instance, and the earlier messages of its own turn."""
    before = dialogue.turns[: instance.turn]
    if not instance.message:
        return before
    return (*before, dialogue.turns[instance.turn].before(instance.message))
