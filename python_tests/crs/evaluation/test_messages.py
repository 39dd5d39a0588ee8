"""Single messages: instances by hand, what their contexts hold, and the file's extension."""

import json
from dataclasses import replace

import pytest

from crs_fast.crs.data import read_dialogues, write_dialogues
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Mention, Turn, merge_turns
from crs_fast.crs.evaluation.fusion import fuse_with_copying
from crs_fast.crs.evaluation.messages import context_of, recommending_messages
from crs_fast.crs.evaluation.predict import predict, rank_messages
from crs_fast.crs.evaluation.predictions import (
    MessageRanking,
    blank_predictions,
    read_predictions,
    write_predictions,
)
from crs_fast.crs.turn import TurnBatch

from ..tiny_system import ITEMS, say
from .test_predict import bundle

SAID = (
    say(RECOMMENDER, "Film 0, first of all", "i0"),
    say(SEEKER, "I like Film 1", "i1"),
    say(RECOMMENDER, "Film 2 then", "i2"),
    say(RECOMMENDER, ""),
    say(RECOMMENDER, "or Film 1, or Film 2, or Film 3", "i1", "i2", "i3"),
    say(SEEKER, "hm,"),
    say(SEEKER, "yes, Film 4", "i4"),
    say(RECOMMENDER, "good"),
    say(RECOMMENDER, "and Film 4", "i4"),
)
DIALOGUES = (Dialogue("a", merge_turns(SAID)), Dialogue("b", merge_turns(SAID[1:3])))


def test_joined_turns_remember_their_messages():
    first, _, third, fourth, last = DIALOGUES[0].turns
    assert third.text == "Film 2 then  or Film 1, or Film 2, or Film 3"
    assert third.breaks == (12, 13)
    assert third.message_items() == [["i2"], [], ["i1", "i2", "i3"]]
    assert fourth.message_items() == [[], ["i4"]]
    assert first.message_items() == [["i0"]]
    assert last.before(1) == Turn(RECOMMENDER, "good")
    assert third.before(1) == third.before(2) == SAID[2]
    # Joining what is joined already keeps every break, and an unlocated mention is the last one's.
    unlocated = Turn(RECOMMENDER, "that one", (Mention("i7"),))
    (joined,) = merge_turns([third, unlocated])
    assert joined.breaks == (12, 13, len(third.text) + 1)
    assert joined.message_items() == [["i2"], [], ["i1", "i2", "i3"], ["i7"]]


@pytest.mark.parametrize("breaks", [(0,), (9,), (4, 2)])
def test_breaks_lie_inside_the_text(breaks):
    with pytest.raises(ValueError, match="Turn: breaks must be rising places inside the text"):
        Turn(SEEKER, "it is so", breaks=breaks)


def test_the_own_format_keeps_what_scoring_needs(tmp_path):
    turns = tuple(
        Turn(t.role, t.text, t.mentions, t.intent, t.breaks, corrected)
        for t, corrected in zip(DIALOGUES[0].turns, [None, (), ("x",), None, None], strict=True)
    )
    dialogue = Dialogue("a", turns, {"i1": "liked"}, ("i2",))
    write_dialogues(tmp_path / "d.jsonl", [dialogue])
    (back,) = read_dialogues(tmp_path / "d.jsonl")
    assert back == dialogue
    assert [t.breaks for t in back.turns] == [t.breaks for t in turns]
    record = json.loads((tmp_path / "d.jsonl").read_text())
    for key, value in {"breaks": ["1"], "corrected": [1]}.items():
        odd = {**record, "turns": [{**record["turns"][2], key: value}]}
        (tmp_path / "odd.jsonl").write_text(json.dumps(odd))
        with pytest.raises(ValueError, match=f"{key} must be a list"):
            read_dialogues(tmp_path / "odd.jsonl")


def test_instances_by_hand():
    found = [
        (i.dialogue, i.turn, i.message, i.targets, i.new, i.named)
        for i in recommending_messages(DIALOGUES)
    ]
    assert found == [
        # The very first message has nothing before it and is no instance; its item is named.
        (0, 2, 0, ("i2",), (True,), ("i0", "i1")),
        (0, 2, 2, ("i1", "i2", "i3"), (False, False, True), ("i0", "i1", "i2")),
        (0, 4, 1, ("i4",), (False,), ("i0", "i1", "i2", "i1", "i2", "i3", "i4")),
        (1, 1, 0, ("i2",), (True,), ("i1",)),
    ]


def test_a_message_is_answered_from_all_before_it_and_nothing_else():
    system = bundle("no window")
    predictions = predict(system, DIALOGUES, replies=False, num_beams=4, progress=False)
    inner = [i for i in recommending_messages(DIALOGUES) if i.message]
    assert {(i.turn, i.message) for i in inner} == {(2, 2), (4, 1)}
    answers = {(p.dialogue, p.turn): p for p in predictions}
    for i in inner:
        turns = context_of(DIALOGUES[i.dialogue], i)
        assert turns[:-1] == DIALOGUES[i.dialogue].turns[: i.turn]
        assert "Film 3" not in turns[-1].text
        context = system.builder.context(turns)
        alone = TurnBatch(system, [context])
        said = answers[i.dialogue, i.turn].messages[i.message]
        assert said.ranking == alone.rank(num_beams=4).items[0]
        assert said.new_ranking is None or not set(said.new_ranking) & set(i.named)
    # Switched off, or done later, it changes nothing else.
    plain = predict(system, DIALOGUES, replies=False, num_beams=4, messages=False, progress=False)
    assert {said.ranking for p in plain for said in p.messages.values()} == {None}
    rank_messages(system, DIALOGUES, plain, num_beams=4, progress=False)
    assert plain == predictions


def test_the_file_holds_them_and_may_lack_them(tmp_path):
    predictions = blank_predictions(DIALOGUES)
    assert {p.turn: list(p.messages) for p in predictions if p.dialogue == 0} == {
        0: [],
        2: [2],
        4: [1],
    }
    predictions[1].messages[2] = MessageRanking(["i3", "i1"], ["i3"], [-0.5, -1.5])
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl", DIALOGUES, ITEMS) == predictions
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]

    def reread(**changes):
        changed = [lines[0], {**lines[1], **changes}, *lines[2:]]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, changed)))
        return read_predictions(tmp_path / "q.jsonl", DIALOGUES, ITEMS)

    for absent in (None, {}):
        assert reread(messages=absent)[1].messages == {2: MessageRanking()}
    for odd, message in (
        ([], None),
        (["i1"], "messages must map messages to their rankings"),
        ({"2": ["i1"]}, "messages must map messages to their rankings"),
        ({"1": {}}, r"must be later ones of the turn that name an item, \['2'\] \(got '1'\)"),
        ({"2": {"ranking": ["gone"]}}, "ranking must hold item ids of the catalogue"),
        ({"2": {"ranking": ["i1", "i1"]}}, "ranking must name an item once"),
        ({"2": {"ranking": ["i1"], "scores": []}}, "scores must be one for each item"),
    ):
        if message is None:
            reread(messages=odd)
            continue
        with pytest.raises(ValueError, match=message):
            reread(messages=odd)


@pytest.mark.parametrize("rule", ["ranks", "odds"])
def test_rankings_inside_a_turn_are_fused_by_what_was_named_before_them(rule):
    predictions = blank_predictions(DIALOGUES)
    ranking, scores = ["i6", "i2", "i5"], [-0.5, -1.5, -2.5]
    for p in predictions:
        p.ranking, p.scores = ranking, scores
    predictions[1].messages[2] = MessageRanking(ranking, ["i6", "i5"], scores, ["i0", "i1", "i2"])
    alone = replace(predictions[1], named=["i0", "i1", "i2"], messages={})
    (said,) = fuse_with_copying([predictions[1]], rule, DIALOGUES)
    (expected,) = fuse_with_copying([alone], rule, DIALOGUES)
    assert said.messages[2].ranking == expected.ranking
    assert said.ranking != expected.ranking  # at the turn's beginning nobody had named i2
    assert said.messages[2].new_ranking == ["i6", "i5"]
