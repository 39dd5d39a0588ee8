"""Scoring a predictions file: figures counted by hand, and what a file may not be."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from crs_fast.cli import main
from crs_fast.crs.data import load_dataset, write_dialogues, write_items
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.predictions import (
    blank_predictions,
    read_predictions,
    write_predictions,
)
from crs_fast.crs.evaluation.reply_samples import replies_markdown
from crs_fast.crs.evaluation.report import recommendation_table
from crs_fast.crs.evaluation.score import (
    mode_figures,
    named_items,
    paired_difference,
    protocol_targets,
    recommendation_figures,
    same_films,
    text_figures,
)
from crs_fast.crs.evaluation.targets import recommendation_targets, target_ranks

from ..tiny_system import DIALOGUE, ITEMS, dialogues

TEST = (replace(DIALOGUE, dialogue_id="long"), *dialogues(3))
DATASET = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(2)), "test": TEST})


def answers(seed, modes=True):
    """Random rankings, modes and replies for every turn."""
    rng = np.random.default_rng(seed)
    out = blank_predictions(TEST)
    for p in out:
        p.ranking = [f"i{i}" for i in rng.permutation(8)]
        if modes:
            p.rec_probability = float(rng.random())
            p.mode = "rec" if p.rec_probability > 0.5 else "chat"
        p.reply, p.reply_items = "see <movie>", [p.ranking[0]]
    return out


def test_protocols_by_hand():
    predictions = answers(0)
    turns = recommendation_targets(TEST)
    rec = [p for p in predictions if p.gold_items]
    for protocol, rankings, new in (
        ("paper", [p.ranking for p in rec], False),
        ("new-only", [[i for i in p.ranking if i not in p.named] for p in rec], True),
        ("free", [p.ranking if p.rec_probability > 0.5 else [] for p in rec], False),
    ):
        expected = target_ranks(turns, rankings, new)
        got = protocol_targets(predictions, protocol)
        assert (got.ranks.tolist(), got.dialogues.tolist()) == expected
        methods = recommendation_figures(DATASET, "test", predictions)[protocol]
        assert {"popularity", "copy", "copy, then popularity"} < set(methods)
        figures = methods["crs_fast"]
        assert figures["n"] == len(expected[0])
        assert figures["hits@5"] == sum(0 < r <= 5 for r in expected[0])
    # Train names i0, i3, i1, i4; the test targets are i2, i3, i4, i5 and i3, i4, i5.
    unseen = protocol_targets(predictions, "unseen", {"i0", "i3", "i1", "i4"})
    assert [key[2] for key in unseen.keys] == ["i2", "i5", "i5"]


def test_baselines_rank_once_with_and_once_without_named_items():
    asked = []

    def ranks(turns, dialogues, exclude_named):
        asked.append(exclude_named)
        return [["i3"] for _ in turns]

    figures = recommendation_figures(DATASET, "test", answers(0), {"mine": ranks})
    assert asked == [False, True]
    assert all(methods["mine"]["n"] for methods in figures.values())


def test_a_search_without_named_items_goes_before_a_filtered_list():
    (p, *_) = [p for p in answers(0) if p.gold_items == ["i5"]]
    p.named, p.new_ranking = ["i1"], ["i5"]
    assert protocol_targets([p], "new-only").ranks.tolist() == [1]


def test_by_film_a_film_counts_once():
    items = tuple(replace(i, imdb_id="tt1") if i.item_id in ("i1", "i2", "i3") else i
                  for i in ITEMS)  # fmt: skip
    films = same_films(items)
    assert films == {"i2": "i1", "i3": "i1"}
    assert same_films(ITEMS) == {}
    (p, *_) = answers(0)
    cases = {  # target, ranking -> rank by item, rank by film
        ("i5", ("i2", "i1", "i3", "i5")): (4, 2),
        ("i1", ("i5", "i3", "i1")): (3, 2),
        ("i2", ("i3",)): (0, 1),
        ("i6", ("i1", "i2")): (0, 0),
    }
    for (target, ranking), expected in cases.items():
        p.gold_items, p.ranking = [target], list(ranking)
        ranks = [protocol_targets([p], "paper", films=f).ranks.tolist() for f in (None, films)]
        assert ranks == [[rank] for rank in expected]
    # A film is new, or unseen, under all its ids or none.
    p.gold_items, p.named, p.ranking = ["i2", "i5"], ["i1"], ["i3", "i2", "i5"]
    for protocol in ("new-only", "unseen"):
        new = [protocol_targets([p], protocol, {"i3"}, films=f) for f in (None, films)]
        assert [t.ranks.tolist() for t in new] == [[2, 3], [2]]

    data = replace(DATASET, items=items)
    figures = recommendation_figures(data, "test", answers(0))
    assert all("by film" in one for methods in figures.values() for one in methods.values())
    for one in figures["paper"].values():
        assert one["by film"]["n"] == one["n"]
        assert one["by film"]["hits@5"] >= one["hits@5"]
    plain = recommendation_figures(DATASET, "test", answers(0))
    assert plain["paper"]["crs_fast"] == {
        k: v for k, v in figures["paper"]["crs_fast"].items() if k != "by film"
    }
    table = recommendation_table(figures["paper"])
    assert "| crs_fast, by film | 7 |" in table
    assert "by film" not in recommendation_table(plain["paper"])


@pytest.mark.data
def test_redials_double_films(data_root):
    data = load_dataset("redial", data_root)
    ids = Counter(item.imdb_id for item in data.items if item.imdb_id)
    double = {item.item_id for item in data.items if ids[item.imdb_id] > 1}
    targets = [t for turn in recommendation_targets(data.splits["test"]) for t in turn.targets]
    assert sum(n > 1 for n in ids.values()) == 192
    assert (len(double), sum(t in double for t in targets)) == (401, 601)
    assert len(same_films(data.items)) == 401 - 192


def test_mode_and_text_figures():
    predictions = answers(1)
    mode = mode_figures(predictions)
    chosen = [p.rec_probability > 0.5 for p in predictions]
    gold = [bool(p.gold_items) for p in predictions]
    assert mode["accuracy"] == np.mean(np.equal(chosen, gold))
    precision = sum(np.logical_and(chosen, gold)) / sum(chosen)
    recall = sum(np.logical_and(chosen, gold)) / sum(gold)
    assert mode["rec f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    text = text_figures(predictions)
    assert text["replies that name the top item"] == 1.0
    assert text["distinct-1"] == pytest.approx(2 / 20)
    # Nothing mentioned is nothing mentioned, also where nothing was ranked.
    for p in [p for p in predictions if p.gold_items][:3]:
        p.ranking, p.reply_items = None, []
    assert text_figures(predictions)["replies that name the top item"] == 1 - 3 / sum(gold)
    # What chooses no mode recommends always.
    always = mode_figures(answers(1, modes=False))
    assert always["accuracy"] == always["rec base rate"] == np.mean(gold)
    assert (always["chat -> rec"], always["rec -> rec"]) == (gold.count(False), sum(gold))
    tops = [p.ranking[0] in p.gold_items for p in answers(1)]
    assert always["item precision"] == np.mean(tops)
    assert "free" not in recommendation_figures(DATASET, "test", answers(1, modes=False))


@pytest.mark.data
@pytest.mark.parametrize(("name", "unseen", "new"), [("redial", 405, 372), ("inspired", 83, 75)])
def test_targets_that_training_never_names(data_root, name, unseen, new):
    """ReDial: 403 and 370 where the validation dialogues count as training."""
    data = load_dataset(name, data_root)
    predictions = blank_predictions(data.splits["test"])
    seen = named_items(data.splits["train"])
    assert len(protocol_targets(predictions, "unseen", seen).keys) == unseen
    assert len(protocol_targets(predictions, "unseen, new-only", seen).keys) == new


def test_paired_difference():
    ours, theirs = answers(2), answers(3)
    result = paired_difference(ours, theirs)
    a, b = (protocol_targets(p, "paper").ranks for p in (ours, theirs))
    assert result["difference@1"] == pytest.approx(np.mean(a == 1) - np.mean(b == 1))
    low, high = result["difference@1 interval"]
    assert low <= result["difference@1"] <= high
    assert paired_difference(ours, ours)["difference@10 interval"] == (0.0, 0.0)
    with pytest.raises(ValueError, match="must answer the same targets"):
        paired_difference(ours, theirs[1:5])


def test_the_file_brings_back_every_figure(tmp_path):
    predictions = answers(4)
    for p in predictions[::2]:  # not everyone says how likely it finds its items
        p.scores = [-0.5 * n for n, _ in enumerate(p.ranking or [])]
    write_predictions(tmp_path / "p.jsonl", predictions)
    back = read_predictions(tmp_path / "p.jsonl", TEST, ITEMS)
    assert back == predictions
    # Some whole dialogues are enough, in any order.
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    (tmp_path / "part.jsonl").write_text("\n".join(reversed(lines[4:6])))
    assert read_predictions(tmp_path / "part.jsonl", TEST, ITEMS) == predictions[4:6]


@pytest.mark.parametrize(
    ("said", "chance", "mode"),
    [
        ("rec", 0.3, "rec"),
        ("chat", 0.9, "chat"),
        (None, 0.9, "rec"),
        (None, 0.5, "chat"),
        ("rec", None, "rec"),
        (None, None, None),
    ],
)
def test_the_mode_is_what_the_system_says(tmp_path, said, chance, mode):
    """How likely it was counts only where no mode is given."""
    write_predictions(tmp_path / "p.jsonl", answers(4))
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    changed = [_with(line, mode=said, rec_probability=chance) for line in lines]
    (tmp_path / "p.jsonl").write_text("\n".join(changed))
    assert {p.mode for p in read_predictions(tmp_path / "p.jsonl", TEST, ITEMS)} == {mode}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "must hold every recommender turn"),
        (lambda lines: [*lines, lines[0]], "must stand once"),
        (lambda lines: [lines[0].replace('"turn": 0', '"turn": 1'), *lines[1:]], "of the split"),
        (lambda lines: [lines[0].replace("[]", '["i1", "i1"]', 1), *lines[1:]], None),
        (lambda lines: [_with(lines[0], ranking=["i1", "i1"])], "must name an item once"),
        (lambda lines: [_with(lines[0], mode="maybe")], "mode must be one of"),
        *(
            (lambda lines, odd=odd: [_with(lines[0], **odd)], f"line 1 .*{next(iter(odd))} must be")
            for odd in (
                {"rec_probability": "0.9"},
                {"rec_probability": float("nan")},
                {"rec_probability": 1.1},
                {"rec_probability": True},
                {"reply": 5},
                {"invalid_items": "two"},
                {"invalid_items": -1},
                {"intent": 3},
                {"mode": ["rec"]},
            )
        ),
        (lambda lines: [_with(lines[0], ranking=[1, 2])], r"as strings \(got 1\)"),
        (lambda lines: [_with(lines[0], ranking="i1")], "must be a list of item ids"),
        (lambda lines: [_with(lines[0], new_ranking=["i1", "gone"])], "of the catalogue.*'gone'"),
        (lambda lines: [_with(lines[0], reply_items=[["i1"]])], "reply_items must hold"),
        (
            lambda lines: [_with(lines[0], ranking=["i1"], scores=[-1.0, -2.0])],
            r"scores must be one for each item of ranking \(got 2 for 1\)",
        ),
        (
            lambda lines: [_with(lines[0], ranking=["i1"], scores=[0.5])],
            "scores must be logarithms of probabilities",
        ),
        (
            lambda lines: [_with(lines[0], ranking=["i1"], scores=["-1"])],
            "scores must be logarithms of probabilities",
        ),
        *(
            (lambda lines, nll=nll: [_with(lines[0], gold_nll=nll)], "gold_nll must be")
            for nll in (
                [1, 2],
                {"gold": 3, "own": 3},
                {"gold": [1.0, 2]},
                {"gold": [1.0, 2], "own": [-1.0, 2]},
                {"gold": [1.0, 2], "own": [1.0, 2.5]},
                {"gold": [1.0, 2], "own": [float("nan"), 2]},
            )
        ),
    ],
)
def test_refused_files(tmp_path, change, message):
    write_predictions(tmp_path / "p.jsonl", answers(5))
    lines = change((tmp_path / "p.jsonl").read_text().splitlines())
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    if message is None:  # `gold` is for people: nothing reads it
        assert len(read_predictions(tmp_path / "p.jsonl", TEST, ITEMS)) == 10
        return
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.jsonl", TEST, ITEMS)


def test_perplexity_is_of_the_turns_that_have_one():
    predictions = answers(4)
    assert not [name for name in text_figures(predictions) if "perplexity" in name]
    predictions[0].gold_nll = {"gold": (2.0, 4), "own": (3.0, 4)}
    predictions[1].gold_nll = {"gold": (0.0, 0), "own": (0.0, 0)}
    predictions[3].gold_nll = {"gold": (4.0, 2), "own": (6.0, 2)}
    figures = text_figures(predictions)
    assert figures["perplexity given gold mode and item"] == pytest.approx(math.exp(6 / 6))
    assert figures["perplexity given own mode and item"] == pytest.approx(math.exp(9 / 6))
    assert figures["word tokens"] == 6


def _with(line, **changes):
    return json.dumps(json.loads(line) | changes)


def test_score_command(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_items(data / "items.jsonl", ITEMS)
    for split, held in DATASET.splits.items():
        write_dialogues(data / f"{split}.jsonl", held)
    write_predictions(tmp_path / "a.jsonl", answers(6))
    write_predictions(tmp_path / "b.jsonl", answers(7))
    command = ["score", str(tmp_path / "a.jsonl"), "--data", str(data)]
    assert main([*command, "--against", str(tmp_path / "b.jsonl"), "--replies", "2"]) == 0
    printed = capsys.readouterr().out
    assert replies_markdown(DATASET, "test", answers(6), 2) in printed
    figures = json.loads(printed.splitlines()[-1])
    expected = recommendation_figures(DATASET, "test", answers(6), name="system")
    assert figures["recommendation"] == json.loads(json.dumps(expected))
    assert figures["against"]["paper"]["n"] == 7
    assert "copy, then popularity" in printed
    # A system that says no more than its rankings is scored on those.
    lines = [
        json.dumps({"dialogue": p.dialogue_id, "turn": p.turn, "ranking": p.ranking})
        for p in answers(6)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    assert main(["score", str(tmp_path / "c.jsonl"), "--data", str(data)]) == 0
    bare = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert bare["recommendation"]["paper"] == figures["recommendation"]["paper"]
    assert bare["text"] == {}
    assert bare["mode"]["chat -> chat"] == bare["mode"]["rec -> chat"] == 0
    (data / "train.jsonl").unlink()
    template = ["score", "--template", str(tmp_path / "t.jsonl"), "--data", str(data)]
    assert main(template) == 0
    assert read_predictions(tmp_path / "t.jsonl", TEST, ITEMS) == blank_predictions(TEST)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["turns"] == 10
    assert main(template) == 2  # what somebody has filled in stays
    assert main(command) == 2
    assert "score: dataset must have a split 'train'" in capsys.readouterr().err
