"""The standard count: on a dialogue counted by hand, and on the real files (`data`)."""

import pytest

from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Mention, Turn
from crs_fast.crs.evaluation.targets import (
    RecTurn,
    TargetCounts,
    count_targets,
    recommendation_targets,
    target_ranks,
)


def turn(role, *items):
    return Turn(role, "x", tuple(Mention(item) for item in items))


DIALOGUES = (
    Dialogue("0", (turn(RECOMMENDER, "a"), turn(SEEKER, "b", "b"), turn(RECOMMENDER))),
    Dialogue(
        "1",
        (turn(SEEKER, "a"), turn(RECOMMENDER, "c", "a", "c"), turn(SEEKER), turn(RECOMMENDER, "c")),
    ),
)


def test_targets_by_hand():
    assert recommendation_targets(DIALOGUES) == [
        RecTurn(0, 0, ("a",), (True,), ()),
        RecTurn(1, 1, ("c", "a"), (True, False), ("a",)),
        RecTurn(1, 3, ("c",), (False,), ("a", "c", "a", "c")),
    ]
    assert count_targets(DIALOGUES) == TargetCounts(
        mentions=5, targets=4, new_targets=2, rec_turns=3, recommender_turns=4
    )


def test_target_ranks():
    turns = recommendation_targets(DIALOGUES)
    rankings = [["b", "a"], ["a", "c"], []]
    assert target_ranks(turns, rankings) == ([2, 2, 1, 0], [0, 1, 1, 1])
    assert target_ranks(turns, rankings, new_only=True) == ([2, 2], [0, 1])
    assert target_ranks(turns, [["a", "a"], ["c", "c"], ["c"]])[0] == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="rankings must be one a turn"):
        target_ranks(turns, rankings[:2])


@pytest.mark.data
def test_standard_counts_of_redial(data_root):
    splits = load_dataset("redial", data_root).splits
    assert count_targets(splits["test"]) == TargetCounts(5006, 4969, 4498, 3671, 7978)


@pytest.mark.data
def test_standard_counts_of_inspired(data_root):
    splits = load_dataset("inspired", data_root).splits
    assert count_targets(splits["valid"]) == TargetCounts(312, 309, 244, 273, 1039)
    assert count_targets(splits["test"]) == TargetCounts(296, 292, 249, 257, 1059)
