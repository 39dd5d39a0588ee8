"""A turn in parts: the ranking, then the text as it is written, then the whole."""

import gc
import warnings

import pytest
import torch

from crs_fast.crs import turn as turn_module
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Ranking, Recommender, Response
from crs_fast.crs.reply_text import ReplyText
from crs_fast.decode import Capability
from python_tests.helpers import sharpen

from .tiny_system import ITEMS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


@pytest.mark.parametrize("mode", ["rec", "chat", None])
@pytest.mark.parametrize("how", [{}, {"exclude": ["i1"]}, {"item": "i5"}, {"repeat_named": False}])
def test_the_parts_are_those_of_respond(recommender, mode, how):
    if mode == "chat" and "item" in how:
        return
    how = dict(how, max_new_tokens=30, do_sample=True, temperature=20.0)
    torch.manual_seed(0)
    whole = recommender.respond(ASK, mode, **how)
    torch.manual_seed(0)
    first, *deltas, last = recommender.stream(ASK, mode, **how)
    assert isinstance(first, Ranking)
    assert (first.mode, first.rec_probability) == (whole.mode, whole.rec_probability)
    assert first.items == whole.items
    assert last == whole
    assert isinstance(last, Response)
    assert all(isinstance(delta, str) and delta for delta in deltas)
    assert "".join(deltas) == whole.text
    assert len(deltas) > 1


@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_a_model_without_a_tree_gives_the_text_at_once(recommender, monkeypatch):
    monkeypatch.setattr(turn_module, "capability", lambda model: Capability(None, "say"))
    first, text, last = recommender.stream(ASK, "rec", max_new_tokens=6)
    assert text == last.text == recommender.respond(ASK, "rec", max_new_tokens=6).text
    assert first.items == last.items


def test_words_that_nobody_waits_for_are_not_written(recommender):
    parts = recommender.stream(ASK, "rec", max_new_tokens=30)
    first = next(parts)
    parts.close()
    assert first.items == recommender.rank(ASK)


REPLIES = [
    [" try ", "i3", " or ", "i5", "!"],
    ["i3"],
    ["  two  spaces ", " ", "i1", "  "],
    ["é 日本 🎬🎬 ok"],
    [" �", "i2", "🎬"],
    [""],
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("cut", [0, 1])
def test_deltas_are_whole_characters_and_titles(recommender, reply, cut):
    """Token by token, also of a reply that was cut off inside an item or a character."""
    builder, titles = recommender.bundle.builder, recommender.titles
    tokens = [
        token
        for part in reply
        for token in (builder.item(part) if part in titles else builder.text(part))
    ]
    tokens = tokens[: len(tokens) - cut]
    text = ReplyText(builder, titles)
    deltas = [text.push(tokens[:n]) for n in range(1, len(tokens) + 1)]
    whole = builder.decode(tokens, titles)
    shown = "".join(deltas)
    assert whole.startswith(shown)
    assert "�" not in shown or "�" in "".join(reply)
    assert shown + text.finish(tokens) == whole
    several = ReplyText(builder, titles)  # tokens that come in twos
    parts = [several.push(tokens[:n]) for n in range(2, len(tokens) + 1, 2)]
    assert "".join(parts) + several.finish(tokens) == whole


def test_a_chat_turn_says_nothing_of_missing_begin_tokens(recommender):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        recommender.respond(ASK, "chat", exclude=[i.item_id for i in ITEMS], max_new_tokens=5)
        recommender.respond(ASK, "chat", max_new_tokens=5)
        gc.collect()
    assert not [w for w in said if "without a constraint" in str(w.message)]


def test_a_batch_is_refused(recommender):
    with pytest.raises(ValueError, match="stream: messages must be one conversation"):
        next(recommender.stream([ASK, ASK]))
    with pytest.raises(ValueError, match="stream: num_items must be at least 1"):
        next(recommender.stream(ASK, num_items=0))
