"""Replies that are drawn for readers, and how they are shown."""

import pytest

from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.predictions import blank_predictions
from crs_fast.crs.evaluation.reply_samples import replies_markdown, sample_replies

from ..tiny_system import DIALOGUE, ITEMS, dialogues

SPLIT = dialogues(12)


def answered(split, reply="see <movie> or <movie>"):
    predictions = blank_predictions(split)
    for p in predictions:
        p.reply, p.ranking, p.mode = reply, ["i5", "i2"], "chat"
        p.reply_items = ["i5"] if p.gold_items else []
    return predictions


@pytest.mark.parametrize("count", [1, 7, 10, 12])
def test_half_of_the_turns_recommend_and_each_is_of_another_dialogue(count):
    chosen = sample_replies(answered(SPLIT), count)
    assert sum(bool(p.gold_items) for p in chosen) == -(-count // 2)
    assert len({p.dialogue for p in chosen}) == len(chosen) == count
    assert [(p.dialogue, p.turn) for p in chosen] == sorted((p.dialogue, p.turn) for p in chosen)


def test_the_same_turns_are_drawn_of_every_system():
    one, other = answered(SPLIT), answered(SPLIT, "no")
    drawn = [[(p.dialogue, p.turn) for p in sample_replies(x, 6)] for x in (one, other)]
    assert drawn[0] == drawn[1]
    again = [(p.dialogue, p.turn) for p in sample_replies(one, 6, seed=1)]
    assert again != drawn[0]


def test_what_is_missing_is_filled_up():
    predictions = answered(SPLIT)
    assert len(sample_replies(predictions, 20)) == 20
    assert len(sample_replies(predictions, 99)) == 24
    for p in predictions:
        if not p.gold_items and p.dialogue:
            p.reply = None
    assert [bool(p.gold_items) for p in sample_replies(predictions, 6)].count(False) == 1
    for p in predictions:
        p.reply = None
    assert replies_markdown(CrsDataset("d", ITEMS, {"test": SPLIT}), "test", predictions) == ""
    with pytest.raises(ValueError, match=r"count must be at least 1 \(got 0\)"):
        sample_replies(predictions, 0)


def test_a_reply_is_shown_with_its_context_and_items():
    predictions = answered([DIALOGUE], "see\n```\n<movie> or <movie>")
    text = replies_markdown(CrsDataset("d", ITEMS, {"test": [DIALOGUE]}), "test", predictions, 1)
    assert "1 of 4 replies" in text
    chosen = sample_replies(predictions, 1)[0]
    assert chosen.gold_items
    shown = text.split("```text\n")[1].split("\n```")[0].splitlines()
    said = [turn.text for turn in DIALOGUE.turns[max(chosen.turn - 3, 0) : chosen.turn + 1]]
    for text, line in zip(said, shown[1:], strict=False):
        assert line.endswith(f" {text}")
    assert "chosen item  Film 5 (1995)" in shown
    assert "reply        see ``` Film 5 (1995) or <movie>" in shown
    assert "gold mode    rec; the system's own: chat" in shown
    ranks = {line for line in shown if line.startswith("gold item")}
    assert len(ranks) == len(chosen.gold_items)
