"""Rankings fused with the items named before, by hand."""

import math
from dataclasses import replace

import pytest

from crs_fast.crs.evaluation.fusion import (
    PLACES,
    fuse_with_copying,
    fused_by_odds,
    fused_by_ranks,
    reciprocal_rank_fusion,
    repeat_odds,
)
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.targets import RecTurn

from ..tiny_system import DIALOGUE, dialogues


def test_reciprocal_rank_fusion():
    """1/61 + 1/63 > 2/62 > 1/61, and ties go to the first list."""
    assert reciprocal_rank_fusion([["a", "b", "c"], ["c", "b", "d"]]) == ["c", "b", "a", "d"]
    assert reciprocal_rank_fusion([["a", "b"], ["c", "d"]]) == ["a", "c", "b", "d"]
    # With k at 0 a first place outweighs two third ones, and they outweigh a second one.
    assert reciprocal_rank_fusion([["a", "b", "x"], ["c", "d", "x"]], k=0)[:3] == ["a", "c", "x"]
    assert reciprocal_rank_fusion([["a", "b", "x"], ["c", "d", "x"]])[0] == "x"
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []


def test_what_fusing_with_copy_changes():
    given = Prediction(
        0, 1, "d", ["b"], ["b", "n", "b"], "rec", 0.9, ["a", "n", "b"], None, "try <movie>", "",
        ["a"], 1, gold_nll={"gold": (1.0, 2), "own": (1.0, 2)},
    )  # fmt: skip
    fused = fused_by_ranks(given)
    # Copy ranks b, then n: 1/63 + 1/61 for b, 2/62 for n.
    assert fused.ranking == ["b", "n", "a"]
    assert fused.new_ranking == ["a"]
    assert (fused.mode, fused.rec_probability) == ("rec", 0.9)
    assert (fused.reply, fused.reply_items, fused.invalid_items) == (None, [], 0)
    assert fused.gold_nll is None
    assert fused_by_ranks(replace(given, new_ranking=["c"])).new_ranking == ["c"]
    for nothing in (None, []):  # its own words named no item
        still = fused_by_ranks(replace(given, ranking=nothing, new_ranking=nothing))
        assert (still.ranking, still.new_ranking) == (nothing, nothing)
    long = [f"i{i}" for i in range(50)]
    assert fused_by_ranks(replace(given, ranking=long, named=["z"])).ranking[:2] == ["i0", "z"]
    assert len(fused_by_ranks(replace(given, ranking=long, named=["z"])).ranking) == 50
    assert fused_by_ranks(replace(given, ranking=long, named=[])).ranking == long


def test_repeat_odds_count_places_by_recency():
    """Before turn 2 stand b, a (latest first), before turn 3 a, b: a was named again."""
    turns = [
        RecTurn(0, 1, ("a",), (True,), ()),
        RecTurn(0, 2, ("a", "c"), (False, True), ("a", "b")),
        RecTurn(0, 3, ("a",), (False,), ("a", "b", "a")),
    ]
    assert repeat_odds(turns) == [1 / 2, 1 / 2, *[0] * (PLACES - 2)]
    # All that is older shares the last place: one hit among the oldest three of twelve.
    many = [f"i{n}" for n in range(PLACES + 2)]
    assert repeat_odds([RecTurn(0, 1, ("i0",), (False,), tuple(many))])[-1] == 1 / 3


def test_odds_of_repeating_against_the_models_own():
    """b was named last (odds .2), n before it (.05). The model gives b .5, so of the rest, .5, a
    has .4 / .5 and c .05 / .5; that neither is repeated has .8 * .95 = .76."""
    logs = [math.log(p) for p in (0.5, 0.4, 0.05)]
    given = Prediction(
        0, 1, "d", ["a"], ["n", "b", "n", "b"], "rec", 0.9, ["b", "a", "c"], scores=logs, reply="x"
    )
    fused = fused_by_odds(given, [0.2, 0.05])
    assert fused.ranking == ["a", "b", "c", "n"]  # .608, .2, .076, .05
    assert (fused.new_ranking, fused.scores, fused.reply) == (["a", "c"], None, None)
    assert (fused.mode, fused.rec_probability) == ("rec", 0.9)
    assert fused_by_odds(given, [0.2, 0.09]).ranking == ["a", "b", "n", "c"]  # .7280 * .1 < .09
    assert fused_by_odds(given, [0.7, 0.05]).ranking == ["b", "a", "n", "c"]
    # Items that can't be told apart stay as the model has them.
    assert fused_by_odds(given, [1.0, 0.0]).ranking == ["b", "a", "c", "n"]
    # Nothing named: the model's own order.
    assert fused_by_odds(replace(given, named=[]), [0.9]).ranking == ["b", "a", "c"]
    for nothing in (None, []):
        still = fused_by_odds(replace(given, ranking=nothing, scores=None), [0.9])
        assert (still.ranking, still.new_ranking) == (nothing, None)
    with pytest.raises(ValueError, match=r"must have scores \(got none in dialogue d, turn 1"):
        fused_by_odds(replace(given, scores=None), [0.9])


def test_a_model_that_gives_new_items_nothing_still_ranks_them():
    """exp(-800) is 0 in double precision, and what is left beside the named item as well."""
    given = Prediction(
        0, 1, "d", ["a"], ["b"], "rec", 0.9, ["b", "a", "c"], scores=[0.0, -800.0, -900.0]
    )
    assert fused_by_odds(given, [0.1]).ranking == ["b", "a", "c"]


def test_fusing_all_predictions_of_a_system():
    given = Prediction(0, 1, "d", ["b"], ["b"], ranking=["a", "b"], scores=[-0.1, -3.0])
    assert fuse_with_copying([given], "ranks") == [fused_by_ranks(given)]
    # In DIALOGUE nothing is repeated: the named item falls behind the new one.
    assert fuse_with_copying([given], "odds", [DIALOGUE])[0].ranking == ["a", "b"]
    with pytest.raises(ValueError, match=r"must be one of \('ranks', 'odds'\) \(got 'magic'"):
        fuse_with_copying([given], "magic")
    with pytest.raises(ValueError, match=r"train must hold dialogues with 'odds' \(got none\)"):
        fuse_with_copying([given], "odds")
    with pytest.raises(ValueError, match="fuse_with_copying: predictions must have scores"):
        fuse_with_copying([replace(given, scores=None)], "odds", dialogues(2))
