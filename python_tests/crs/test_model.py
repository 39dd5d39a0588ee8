"""Recommender.respond and the turn engine, on a tiny random model."""

import pytest
import torch

from crs_fast.crs.bundle import Bundle
from crs_fast.crs.model import Recommender
from crs_fast.crs.sequence import CHAT, REC
from crs_fast.crs.turn import TurnBatch
from crs_fast.decode import SidLogitsProcessor, recommend

from .tiny_system import ITEMS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
LONGER = [
    *ASK,
    {"role": "assistant", "content": "Film 2 (1992) maybe."},
    {"role": "seeker", "content": "seen it"},
]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # default initialisation is nearly uniform
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


def greedy_text(bundle, tokens, limit):
    """Reply tokens by one `generate` without a cache of ours."""
    control = bundle.control
    out = bundle.model.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens)),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=bundle.builder.eos,
        pad_token_id=0,
        suppress_tokens=[control.resp, control.chat, control.rec],
        logits_processor=[SidLogitsProcessor(bundle.trie, bundle.vocab)],
    )[0, len(tokens) :].tolist()
    return out[: out.index(bundle.builder.eos)] if bundle.builder.eos in out else out


def test_a_turn_on_one_prefill_equals_three_separate_calls(recommender):
    """Batched contexts of unequal length and mixed modes: mode, ranking and words are those of
    plain forward passes, `recommend` and `generate` on each sequence alone."""
    bundle = recommender.bundle
    builder = bundle.builder
    contexts = [builder.context(recommender.turns(m)) for m in (ASK, LONGER, ASK + LONGER)]
    turns = TurnBatch(bundle, contexts)
    ranked = turns.rank([0, 2], num_beams=6)
    prefixes = [
        builder.prefix(REC, str(ranked.items[0][0])),
        builder.prefix(CHAT),
        builder.prefix(REC, str(ranked.items[1][0])),
    ]
    replies = turns.write(prefixes, max_new_tokens=12)
    for row, context in enumerate(contexts):
        with torch.no_grad():
            logits = bundle.model(torch.tensor([context])).logits[0, -1]
        pair = logits[[bundle.control.chat, bundle.control.rec]].softmax(0)
        assert float(turns.rec_probability[row]) == pytest.approx(float(pair[1]), abs=1e-5)
        expected = greedy_text(bundle, context + prefixes[row], 12)
        assert replies[row][: len(expected)] == expected
    for at, row in enumerate((0, 2)):
        alone = recommend(
            bundle.model,
            torch.tensor([contexts[row] + builder.prefix(REC)]),
            trie=bundle.trie,
            vocab=bundle.vocab,
            num_beams=6,
        )
        assert alone.items[0] == ranked.items[at]


def test_modes(recommender):
    assert recommender.respond(ASK, mode="chat", max_new_tokens=4).items == []
    rec = recommender.respond(ASK, mode="rec", num_items=3, max_new_tokens=4)
    assert (rec.mode, len(rec.items)) == ("rec", 3)
    scores = [score for _, _, score in rec.items]
    assert scores == sorted(scores, reverse=True)
    assert all(title == recommender.titles[item] for item, title, _ in rec.items)
    free = recommender.respond(ASK, max_new_tokens=4)
    assert free.mode == ("rec" if free.rec_probability > 0.5 else "chat")
    given = recommender.respond(ASK, item="i5", max_new_tokens=4)
    assert (given.mode, given.items[0][0]) == ("rec", "i5")


def test_exclusion_is_exact_and_per_request(recommender):
    everything = [item.item_id for item in ITEMS]
    common = dict(mode="rec", num_items=8, max_new_tokens=2)
    one, two = recommender.respond([ASK, ASK], exclude=[["i1", "i2"], None], **common)
    assert {i for i, _, _ in one.items} == set(everything) - {"i1", "i2"}
    assert {i for i, _, _ in two.items} == set(everything)
    nothing = recommender.respond(ASK, exclude=everything, **common)
    assert nothing.items == []


def test_a_batch_answers_as_each_alone(recommender):
    batch = recommender.respond([ASK, LONGER], mode="rec", max_new_tokens=6)
    for together, alone in zip(batch, (ASK, LONGER), strict=True):
        single = recommender.respond(alone, mode="rec", max_new_tokens=6)
        assert [i for i, _, _ in single.items] == [i for i, _, _ in together.items]
        assert single.text == together.text


def test_titles_are_understood_or_given(recommender):
    (turn,) = recommender.turns(ASK)
    assert turn.item_ids() == ["i3"]
    said = {"role": "user", "content": "that one", "items": [{"item_id": "i4"}]}
    (turn,) = recommender.turns([said])
    assert turn.item_ids() == ["i4"]
    located = {**said, "items": [{"item_id": "i4", "start": 5, "end": 8}]}
    (turn,) = recommender.turns([located])
    assert list(turn.pieces()) == [("that ", None), ("one", "i4")]


def test_replies_show_titles_and_never_sid_tokens(recommender):
    for message in (ASK, LONGER):
        turn = recommender.respond(
            message, mode="rec", do_sample=True, temperature=3.0, max_new_tokens=40
        )
        assert turn.invalid_items == 0
        for token in ("<BOI>", "<EOI>", "<a_", "<b_", "<c_", "<RESP>", "<MODE"):
            assert token not in turn.text


def test_a_reply_never_ends_inside_an_item(recommender):
    """Whatever the limit, an open SID is finished: force one to open at the last place."""
    bundle = recommender.bundle
    builder = bundle.builder
    context = builder.context(recommender.turns(ASK))
    prefix = [*builder.prefix(CHAT), builder.begin]
    for limit in (1, 2, 3):
        (reply,) = TurnBatch(bundle, [context]).write([prefix], max_new_tokens=limit)
        items, invalid = builder.sid_fragments([builder.begin, *reply])
        assert (len(items), invalid) == (1, 0)


@pytest.mark.parametrize(
    ("messages", "kwargs", "message"),
    [
        ([], {}, "at least one message"),
        ([{"role": "bot", "content": "x"}], {}, "a role of"),
        ([{"role": "user"}], {}, "a content string"),
        (ASK, {"mode": "sing"}, "mode must be one of"),
        (ASK, {"mode": "chat", "item": "i1"}, "mode must be one of"),
        (ASK, {"item": "nope"}, "ids of the catalogue"),
        (ASK, {"exclude": ["nope"]}, "ids of the catalogue"),
        (ASK, {"num_items": 60}, "at most num_beams"),
        ([ASK, ASK], {"exclude": [None]}, "one collection a request, 2"),
    ],
)
def test_bad_requests(recommender, messages, kwargs, message):
    with pytest.raises(ValueError, match=message):
        recommender.respond(messages, **kwargs)
