"""The oracle arm: which labels reach which sequences."""

import gzip
import json
import re
from dataclasses import replace

import pytest

from benchmarks.recommendation.arms import ARMS, Setting, choose_arms
from benchmarks.recommendation.arms.oracle import answer_labelled, labelled, labelled_instances
from benchmarks.recommendation.arms.setting import ORACLE
from benchmarks.recommendation.results import write_results
from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, CrsDataset, Dialogue, Mention, Turn
from crs_fast.crs.evaluation.predictions import blank_predictions, write_predictions
from crs_fast.crs.training.config import TrainConfig
from python_tests.crs.tiny_system import ITEMS, dialogues, say, system

TITLES = {item.item_id: item.title for item in ITEMS}
LAST = "not said if liked"
LABEL = re.compile(rf"(\S+ \S+) \((liked|disliked|{LAST})\)")

# The seeker brings up 1, 2, 6 and 7, the recommender 3, 4 and 5; 2 is a target too.
LONG = Dialogue(
    "long",
    (
        say(SEEKER, "Film 1 and Film 2, then Film 1", "i1", "i2", unlocated=("i7",)),
        say(RECOMMENDER, "Film 3", "i3"),
        say(SEEKER, "Film 3 and Film 6", "i3", "i6"),
        say(RECOMMENDER, "Film 2 or Film 4", "i2", "i4"),
        say(SEEKER, "Film 1, no"),
        say(RECOMMENDER, "fine"),
        say(SEEKER, "what else"),
        say(RECOMMENDER, "Film 5", "i5"),
    ),
    {
        "i1": "disliked", "i2": "liked", "i3": "liked", "i4": "disliked",
        "i5": "liked", "i6": "not said", "i7": "liked",
    },
)  # fmt: skip
EARLY = {("Film 1", "disliked"), ("Film 2", "liked")}
LATE = EARLY | {("Film 6", LAST)}
SHOWN = {1: EARLY, 3: set(), 5: LATE, 7: LATE}  # turn -> labels its context shows


def test_words_stand_behind_first_mentions():
    turns = labelled(LONG).turns
    assert turns[0].text == "Film 1 (disliked) and Film 2 (liked), then Film 1"
    assert turns[2].text == "Film 3 and Film 6 (not said if liked)"
    for old, new in zip(LONG.turns, turns, strict=True):
        assert old == new or old.role == SEEKER
        # Mentions stay on their titles.
        assert old.item_ids() == new.item_ids()
        assert [p for p in old.pieces() if p[1]] == [p for p in new.pieces() if p[1]]
    bare = replace(LONG, liked={})
    assert labelled(bare) == bare


def test_no_label_of_a_recommenders_item_or_a_target_is_trained_on():
    builder = system()[-1]
    found = labelled_instances(builder, LONG)
    # Turn 3 has a target that the seeker brought up: it is not trained on.
    assert [(i.turn_index, i.item_id) for i in found] == [(1, "i3"), (5, None), (7, "i5")]
    for instance in found:
        text = builder.decode(instance.context, TITLES)
        assert set(LABEL.findall(text)) == SHOWN[instance.turn_index]
        assert len(LABEL.findall(text)) == len(SHOWN[instance.turn_index])
        assert not LABEL.findall(builder.decode(instance.response, TITLES))


def reading(asked, replies):
    """Answers with what a model would read."""
    builder = system()[-1]
    out = blank_predictions(asked)
    for p in out:
        p.reply = builder.decode(builder.context(asked[p.dialogue].turns[: p.turn]), TITLES)
    return {"": out}


def test_no_label_of_a_recommenders_item_or_a_target_is_answered_on():
    test = [dialogues(1)[0], LONG]
    found = answer_labelled(reading, test, False)[""]
    plain = blank_predictions(test)
    assert [replace(p, reply=None) for p in found] == plain
    shown = {p.turn: set(LABEL.findall(p.reply)) for p in found if p.dialogue == 1}
    assert shown == SHOWN
    # Without its labels a telling turn reads what every arm reads.
    (bare,) = [p.reply for p in reading([LONG], False)[""] if p.turn == 3]
    assert bare in [p.reply for p in found]


def test_it_is_marked_and_not_a_default(tmp_path):
    data = CrsDataset("mine", ITEMS, {"train": (), "test": (LONG,)})
    for arm in ("oracle-liked", "copy"):
        folder = tmp_path / "runs" / arm / "seed0"
        folder.mkdir(parents=True)
        (folder / "done.json").write_text('{"seconds": {}}')
        write_predictions(folder / "predictions.jsonl", blank_predictions([LONG]))
    methods = write_results(tmp_path, data)["recommendation"]["paper"]
    assert list(methods) == ["copy", f"oracle-liked ({ORACLE})"]
    assert f"| oracle-liked ({ORACLE}) |" in (tmp_path / "results.md").read_text()
    assert ARMS["oracle-liked"].about.startswith(ORACLE)
    assert "oracle-liked" not in [arm.name for arm in choose_arms(None)]


def test_data_without_labels_are_refused(tmp_path):
    data = CrsDataset("mine", ITEMS, {"train": tuple(dialogues(2))})
    setting = Setting(data, None, None, TrainConfig())
    with pytest.raises(ValueError, match=r"oracle-liked: .* what seekers liked.*'mine'"):
        ARMS["oracle-liked"].fit(setting, tmp_path, TrainConfig())


@pytest.mark.data
def test_labels_of_redial(data_root):
    """Against the raw lines: an item whose first @id the seeker wrote has its label once."""
    test = {d.dialogue_id: d for d in load_dataset("redial", data_root).splits["test"]}
    total = 0
    with gzip.open(data_root / "redial" / "test_data.jsonl.gz", "rt") as lines:
        for record in map(json.loads, lines):
            first = {}
            for message in record["messages"]:
                for item in re.findall(r"@(\d+)", message["text"]):
                    first.setdefault(item, message["senderWorkerId"])
            form = record["initiatorQuestions"] or {}
            expected = [i for i, who in first.items() if who == record["initiatorWorkerId"]]
            expected = [form[i]["liked"] for i in expected if i in form]
            text = " ".join(t.text for t in labelled(test[record["conversationId"]]).turns)
            found = [text.count(f" ({name})") for name in ("disliked", "liked", LAST)]
            assert found == [expected.count(n) for n in range(3)]
            total += len(expected)
    assert total == 2334 + 240 + 56


def test_unlocated_mentions_have_no_place_for_words():
    turn = Turn(SEEKER, "that one", (Mention("i1"),))
    dialogue = Dialogue("d", (turn,), {"i1": "liked"})
    assert labelled(dialogue).turns == (turn,)
