"""Rankings that the scorers of CRSLab, UniCRS and iEvaLM read."""

import json

import pytest

from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.score import protocol_targets, target_figures
from crs_fast.integrations.crslab import write_ranks

PREDICTIONS = [
    Prediction(0, 1, "a", ["x", "y"], [], ranking=["z", "x", "w"]),
    Prediction(0, 3, "a", [], ["x"], ranking=["y"]),
    Prediction(1, 1, "b", ["w"], [], ranking=["w", "z"]),
    Prediction(1, 3, "b", ["z"], ["w"]),
]
ENTITY2ID = {"x": 4, "y": 9, "Film Z": 7, "w": 2}


def recall(path, k):
    """As iEvaLM's metric and UniCRS's evaluator count: one line after another, label by label."""
    rows = map(json.loads, path.read_text().splitlines())
    hits = [label in row["ranks"][:k] for row in rows for label in row["labels"]]
    return sum(hits) / len(hits)


def test_their_recall_is_ours(tmp_path):
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, PREDICTIONS)
    figures = target_figures(protocol_targets(PREDICTIONS, "paper"))
    assert [recall(path, k) for k in (1, 10)] == [figures["recall@1"], figures["recall@10"]]


def test_items_become_their_numbers(tmp_path):
    path = tmp_path / "ranks.jsonl"
    numbered = [Prediction(0, 1, "a", ["x"], [], ranking=["7", "w"])]  # "7": a number of theirs
    write_ranks(path, numbered, ENTITY2ID)
    assert json.loads(path.read_text()) == {
        "dialogue": "a", "turn": 1, "ranks": [7, 2], "labels": [4],
    }  # fmt: skip


def test_an_unknown_item_is_named_and_nothing_written(tmp_path):
    path = tmp_path / "ranks.jsonl"
    with pytest.raises(ValueError, match=r"entity2id must name every item \(got no 'z'\)"):
        write_ranks(path, PREDICTIONS, ENTITY2ID)
    assert list(tmp_path.iterdir()) == []
