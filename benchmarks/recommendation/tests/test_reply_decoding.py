"""Ways to write replies: what they are, and the figures that compare them."""

import numpy as np
import pytest

from benchmarks.recommendation.reply_decoding import (
    Decoding,
    bleu_counts,
    bleu_of,
    consensus,
    gain_interval,
    row,
    written,
)
from crs_fast.crs.evaluation.metrics import sacre_bleu
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.sampling import Sampling
from python_tests.crs.evaluation.test_predict import bundle
from python_tests.crs.tiny_system import dialogues

GOLD = ["You should see <movie>, it is good.", "What do you like to watch?", "I like <movie> too."]
SAID = ["You should see <movie> today.", "What do you like?", "<movie> is what I like, too."]


def answer(reply, at=0, items=(), **fields):
    gold = {"gold_items": [], "named": [], "gold_reply": GOLD[at], **fields}
    return Prediction(at, 1, str(at), reply=reply, reply_items=list(items), **gold)


def test_names():
    assert Decoding.parse("greedy") == Decoding("greedy")
    assert Decoding.parse("sample:0.7").sampling == Sampling(True, 0.7)
    assert Decoding.parse("consensus:5:1:0.9") == Decoding(
        "consensus:5:1:0.9", Sampling(True, 1.0, 0.9), 5
    )
    assert Decoding.parse("greedy+chosen") == Decoding("greedy+chosen", only_chosen=True)
    for name in (
        "beams:4",
        "greedy+other",
        "sample",
        "sample:0",
        "sample:x",
        "consensus:2:1",
        "greedy:1",
    ):
        with pytest.raises(ValueError, match="reply_decoding: "):
            Decoding.parse(name)


def test_bleu_is_that_of_sacrebleu():
    pytest.importorskip("sacrebleu")
    answers = [answer(reply, at) for at, reply in enumerate(SAID)]
    counts = bleu_counts(answers)
    bleu, penalty = bleu_of(counts.sum(0))
    assert bleu == pytest.approx(sacre_bleu(SAID, GOLD))
    assert 0 < penalty < 1
    assert "| +0.00 [+0.00, +0.00] |" in row(Decoding("greedy"), answers, counts, 1.0)
    shorter = bleu_counts([answer(reply[:9], at) for at, reply in enumerate(SAID)])
    low, high = gain_interval(counts, shorter, [0, 1, 2])
    assert low <= high
    repeated = gain_interval(np.tile(counts, (50, 1)), np.tile(shorter, (50, 1)), range(150))
    assert low < repeated[0] < bleu - bleu_of(shorter.sum(0))[0] < repeated[1]


def test_consensus_takes_the_reply_that_agrees_with_the_others():
    replies = ["see the film today", "quite another thing", "see the film now", ""]
    assert consensus([answer(reply) for reply in replies]).reply == "see the film today"
    rec = {"gold_items": ["i1"], "ranking": ["i2"]}
    answers = [answer(reply, **rec) for reply in replies]
    answers[1].reply_items = ["i2"]
    assert consensus(answers) is answers[1]


def test_replies_are_drawn_alike_each_time():
    system, split = bundle("llama"), dialogues(3)
    made = predict(system, split, num_beams=4, max_new_tokens=5, progress=False)
    assert written(system, split, made, Decoding("greedy"), 5) == made
    some = Decoding.parse("consensus:3:1")
    first, second = (written(system, split, made, some, 5) for _ in range(2))
    assert [p.reply for p in first] == [p.reply for p in second] != [p.reply for p in made]
