"""Evaluation protocols on a tiny random model: counts and figures against plain recomputation."""

import json
from dataclasses import replace

import pytest

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.evaluate import evaluate
from crs_fast.crs.evaluation.predictions import blank_predictions
from crs_fast.crs.evaluation.targets import recommendation_targets, target_ranks
from crs_fast.crs.recommender import Recommender

from ..tiny_system import DIALOGUE, ITEMS, dialogues, system


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


@pytest.fixture(scope="module")
def dataset():
    return CrsDataset(
        "tiny", ITEMS, {"train": tuple(dialogues(8)), "test": (DIALOGUE, *dialogues(3))}
    )


@pytest.fixture(scope="module")
def evaluation(recommender, dataset):
    return evaluate(recommender, dataset, max_new_tokens=6, progress=False)


def test_every_recommender_turn_is_answered_once(recommender, dataset):
    turns = blank_predictions(dataset.splits["test"])
    assert [(p.dialogue, p.turn) for p in turns] == [
        (0, 0), (0, 2), (0, 4), (0, 6), (1, 1), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3)
    ]  # fmt: skip
    assert turns[1].gold_items == ["i2", "i3", "i4"]
    assert turns[1].named == ["i1"]
    assert turns[1].gold_reply == "<movie> or <movie> maybe"


def test_protocols_count_as_the_targets_do(evaluation, dataset):
    targets = recommendation_targets(dataset.splits["test"])
    paper, new = evaluation.recommendation["paper"], evaluation.recommendation["new-only"]
    assert paper["crs_fast"]["n"] == sum(len(t.targets) for t in targets) == 7
    assert new["crs_fast"]["n"] == sum(sum(t.new) for t in targets)
    assert {m["n"] for m in paper.values()} == {7}
    # 8 items and 50 beams: every item is ranked, so every target is hit at 10.
    assert paper["crs_fast"]["recall@10"] == 1.0


def test_rankings_are_those_of_the_protocol(evaluation, recommender, dataset):
    rec = [p for p in evaluation.predictions if p.gold_items]
    turns = recommendation_targets(dataset.splits["test"])
    for prediction, turn in zip(rec, turns, strict=True):
        assert (prediction.dialogue, prediction.turn) == (turn.dialogue, turn.turn)
        assert sorted(prediction.ranking) == sorted(i.item_id for i in ITEMS)
        if any(turn.new) and turn.named:
            assert not set(prediction.new_ranking) & set(turn.named)
        kept = [i for i in prediction.ranking if i not in turn.named]
        if any(turn.new):
            # With every item inside the beam, filtering the search equals filtering the list.
            assert [i for i in prediction.new_ranking if i not in turn.named] == kept
    ranks, _ = target_ranks(turns, [p.ranking for p in rec])
    assert evaluation.recommendation["paper"]["crs_fast"]["hits@1"] == ranks.count(1)


def test_free_mode_counts_a_wrong_chat_as_a_miss(recommender, dataset):
    """Silence the REC token: free mode finds nothing, the paper's protocol is as before."""
    control = recommender.bundle.control
    head = recommender.bundle.model.get_output_embeddings()
    forward = head.forward

    def silenced(hidden):
        logits = forward(hidden).clone()
        logits[..., control.rec] = -1e4
        return logits

    head.forward = silenced
    try:
        result = evaluate(recommender, dataset, replies=False, progress=False)
    finally:
        del head.forward
    assert result.recommendation["free"]["crs_fast"]["hits@50"] == 0
    assert result.recommendation["paper"]["crs_fast"]["hits@50"] == 7
    assert result.mode["rec -> rec"] == result.mode["chat -> rec"] == 0
    assert result.mode["rec -> chat"] == 5
    assert result.mode["accuracy"] == pytest.approx(0.5)


def test_saved_files_hold_the_figures(evaluation, tmp_path):
    evaluation.save(tmp_path)
    for name in ("gold", "own"):
        assert evaluation.text[f"perplexity given {name} mode and item"] > 1
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved == json.loads(json.dumps(evaluation.to_dict()))
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert lines[1]["ranking"] == evaluation.predictions[1].ranking
    table = (tmp_path / "evaluation.md").read_text()
    for name in ("crs_fast", "popularity", "copy, then popularity", "New-only", "Free mode"):
        assert name in table
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "predictions.jsonl",
    ]


def test_missing_splits_are_found_before_anything_is_answered(dataset):
    with pytest.raises(
        ValueError, match=r"evaluate: dataset must have a split 'dev' .*\(got \['tr"
    ):
        evaluate(None, dataset, "dev")
    for train in ({}, {"train": ()}):
        bare = replace(dataset, splits={**train, "test": dataset.splits["test"]})
        with pytest.raises(
            ValueError, match=r"a split 'train' that is not empty \(got \['test'\]\)"
        ):
            evaluate(None, bare)
