"""The choices under which replies are scored."""

import pytest

from benchmarks.recommendation.bleu_choices import choices, constant, messages
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Mention, Turn
from crs_fast.crs.evaluation.predictions import blank_predictions

pytest.importorskip("sacrebleu")
TOLD = Turn(
    RECOMMENDER,
    "You should see Heat now. It is a very good film.",
    (Mention("i0", 15, 19),),
    breaks=(25,),
)
DIALOGUES = (
    Dialogue("a", (Turn(SEEKER, "hello"), TOLD, Turn(SEEKER, "ok"))),
    Dialogue("b", (Turn(SEEKER, "hello"), Turn(RECOMMENDER, "What do you like to watch ?"))),
)


def test_choices_differ_where_they_should():
    assert messages(TOLD) == ["You should see <movie> now.", "It is a very good film."]
    answers = blank_predictions(DIALOGUES)
    answers[0].reply, answers[1].reply = "It is a very good film.", "what do YOU like to watch ?"
    scored = {
        name.split(",")[0].split(":")[0]: s for name, s in choices(answers, DIALOGUES).items()
    }
    assert {n for n, _ in scored.values()} == {1, 2}
    assert scored["every message of the turn a reference too"][1] > scored["ours"][1]
    assert scored["lower case"][1] > scored["ours"][1]
    for answer in answers:
        answer.reply = answer.gold_reply
    assert all(score == pytest.approx(100) for _, score in choices(answers, DIALOGUES).values())


def test_the_constant_reply_is_the_commonest_of_its_kind():
    got = constant(blank_predictions(DIALOGUES), DIALOGUES)
    assert [p.reply for p in got] == [TOLD.with_placeholder(), "What do you like to watch ?"]
