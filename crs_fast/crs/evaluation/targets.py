"""Recommendation targets: the items that a ranking should contain, and the context that it may
read.

By the standard count, every distinct item of a recommender turn is a target. Its context is all
earlier turns, possibly none, and one ranking serves all targets of a turn. A target is new if no
earlier turn, by either role, named it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crs_fast.crs.data.dialogue import RECOMMENDER, Dialogue


@dataclass(frozen=True, slots=True)
class RecTurn:
    """A recommender turn. `dialogue` and `turn` are indices. `targets` are its distinct items in
    order of mention, and `new[i]` says whether `targets[i]` is new. `named` are the mentions of all
    earlier turns in order, with repetitions."""

    dialogue: int
    turn: int
    targets: tuple[str, ...]
    new: tuple[bool, ...]
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """Counts over a split. `mentions` counts repetitions within a turn; `rec_turns` is the number
    of recommender turns that name an item."""

    mentions: int
    targets: int
    new_targets: int
    rec_turns: int
    recommender_turns: int


def recommender_turns(dialogues: Sequence[Dialogue]) -> list[RecTurn]:
    """Every recommender turn, in order; turns of small talk have no targets."""
    found = []
    for d, dialogue in enumerate(dialogues):
        named: list[str] = []
        for t, turn in enumerate(dialogue.turns):
            if turn.role == RECOMMENDER:
                targets = turn.item_ids()
                new = tuple(item not in named for item in targets)
                found.append(RecTurn(d, t, tuple(targets), new, tuple(named)))
            named += [mention.item_id for mention in turn.mentions]
    return found


def recommendation_targets(dialogues: Sequence[Dialogue]) -> list[RecTurn]:
    """Every recommender turn that names an item, in order."""
    return [turn for turn in recommender_turns(dialogues) if turn.targets]


def count_targets(dialogues: Sequence[Dialogue]) -> TargetCounts:
    """The standard counts of a split, to be printed beside every figure."""
    turns = recommender_turns(dialogues)
    targets = [turn for turn in turns if turn.targets]
    return TargetCounts(
        mentions=sum(len(dialogues[t.dialogue].turns[t.turn].mentions) for t in targets),
        targets=sum(len(turn.targets) for turn in targets),
        new_targets=sum(sum(turn.new) for turn in targets),
        rec_turns=len(targets),
        recommender_turns=len(turns),
    )


def target_ranks(
    turns: Sequence[RecTurn], rankings: Sequence[Sequence[str]], new_only: bool = False
) -> tuple[list[int], list[int]]:
    """The rank of each target in its turn's ranking.

    Args:
        turns: the turns.
        rankings: one ranking a turn, item ids, best first.
        new_only: leave out targets that an earlier turn named.

    Returns:
        Ranks, 1 is best and 0 means not ranked, and the dialogue index of each, in equal order.

    Raises:
        ValueError: not one ranking a turn.
    """
    if len(turns) != len(rankings):
        raise ValueError(
            f"target_ranks: rankings must be one a turn (got {len(rankings)} for {len(turns)})"
        )
    ranks, dialogues = [], []
    for turn, ranking in zip(turns, rankings, strict=True):
        place = {item: rank for rank, item in reversed(list(enumerate(ranking, 1)))}
        for item, new in zip(turn.targets, turn.new, strict=True):
            if new or not new_only:
                ranks.append(place.get(item, 0))
                dialogues.append(turn.dialogue)
    return ranks, dialogues
