"""One set of predictions by two label sets: counted by hand, and INSPIRED2's counts."""

from dataclasses import replace

import pytest

from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.corrected_labels import (
    corrected_turns,
    count_corrected_targets,
    label_figures,
)
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import blank_predictions
from crs_fast.crs.evaluation.score import protocol_targets
from crs_fast.crs.evaluation.standard_report import labels_markdown
from crs_fast.crs.evaluation.targets import TargetCounts

from ..tiny_system import DIALOGUE, ITEMS, dialogues
from .test_predict import bundle

# Labels: - | i1 | i2 i3 i4 | - | - | - | i5. Corrected: i3 was named by nobody, the seeker names
# i6, the small talk recommends i7, and the last turn a film of no catalogue.
CORRECTED = ((), ("i1",), ("i2", "i4"), ("i6",), ("i7",), (), ("i6", "gone"))
LABELLED = replace(
    DIALOGUE,
    turns=tuple(
        replace(turn, corrected=items)
        for turn, items in zip(DIALOGUE.turns, CORRECTED, strict=True)
    ),
)
TEST = (LABELLED, *dialogues(2))
DATASET = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(2)), "test": TEST})


def answers():
    predictions = blank_predictions(TEST)
    _, second, third, last, *_ = predictions
    second.ranking, second.new_ranking = ["i1", "i2", "i3"], ["i2", "i3"]
    third.ranking, third.new_ranking = ["i6", "i7"], None
    last.ranking, last.new_ranking = ["i6", "i1", "i5"], ["i7", "i5"]
    return predictions


def test_figures_by_hand():
    figures = label_figures(DATASET, "test", answers(), "mine")
    paper, new = (figures["original"][p]["mine"] for p in ("paper", "new-only"))
    # Dialogues without corrected labels are left out of both sides.
    assert (paper["n"], paper["hits@1"], paper["hits@5"]) == (4, 0, 3)
    assert (new["n"], new["hits@1"], new["hits@5"]) == (4, 1, 3)
    paper, new = (figures["corrected"][p]["mine"] for p in ("paper", "new-only"))
    # i2 i4 | i7 | i6 gone stand at 2 - | 2 | 1 -.
    assert (paper["n"], paper["hits@1"], paper["hits@5"]) == (5, 1, 3)
    # i6 was named by the seeker and leaves: i2 i4 | i7 | gone stand at 1 - | 1 | -.
    assert (new["n"], new["hits@1"], new["hits@5"]) == (4, 2, 2)
    assert [figures[kind]["n"] for kind in ("kept", "false", "added")] == [2, 2, 3]
    assert [figures[kind]["hits@5"] for kind in ("kept", "false", "added")] == [1, 2, 2]
    assert figures["misses@1"]["n"] == 4
    assert figures["misses@1"]["false"] == 2
    assert figures["misses@1"]["share"] == 0.5
    assert figures["misses@10"]["n"] == 1
    assert figures["misses@10"]["false"] == 0
    assert (figures["no item"], figures["unranked turns"]) == (1, 0)
    assert {"popularity", "copy", "copy, then popularity"} < set(figures["corrected"]["paper"])
    text = labels_markdown(figures)
    assert "| at 1 | 4 | 2 | 50.0 [" in text
    unranked = answers()
    unranked[2].ranking = None
    assert label_figures(DATASET, "test", unranked)["unranked turns"] == 1


def test_none_without_corrected_labels():
    plain = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(2)), "test": (DIALOGUE,)})
    assert label_figures(plain, "test", blank_predictions((DIALOGUE,))) == {}
    assert labels_markdown({}) == ""


def test_turns_that_recommend_by_corrected_labels_alone_are_ranked():
    system = bundle("no window")
    plain, labelled = (
        predict(system, [one], replies=False, num_beams=4, progress=False)
        for one in (DIALOGUE, LABELLED)
    )
    assert [p.turn for p in plain if p.ranking] == [2, 6]
    assert [p.turn for p in labelled if p.ranking] == [2, 4, 6]
    for p, q in zip(plain, labelled, strict=True):
        assert p.ranking is None or p.ranking == q.ranking
    # The standard figures know nothing of it.
    ranks = [protocol_targets(p, "paper").ranks.tolist() for p in (plain, labelled)]
    assert ranks[0] == ranks[1]


@pytest.mark.data
def test_inspired2s_counts(data_root):
    data = load_dataset("inspired", data_root)
    counts = {split: count_corrected_targets(data.splits[split]) for split in ("valid", "test")}
    assert counts["test"] == TargetCounts(353, 353, 308, 296, 1059)
    assert counts["valid"] == TargetCounts(369, 369, 294, 309, 1039)
    assert corrected_turns(data.splits["train"]) == []
    figures = label_figures(data, "test", blank_predictions(data.splits["test"]))
    assert [figures[kind]["n"] for kind in ("kept", "false", "added")] == [276, 16, 77]
    assert figures["no item"] == 35
    # A system that answers its own data set's turns alone leaves some of these without a ranking.
    assert figures["unranked turns"] == 296
    copy = {labels: figures[labels]["paper"]["copy"] for labels in ("original", "corrected")}
    assert [(c["n"], c["hits@1"]) for c in copy.values()] == [(292, 27), (353, 25)]
