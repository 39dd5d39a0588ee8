"""Whole splits answered on one prefill a dialogue, against one turn at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue
from crs_fast.crs.evaluation.batched_turns import chains, chunks, walk
from crs_fast.crs.evaluation.predict import predict, predict_in_words, write_replies
from crs_fast.crs.sampling import Sampling
from crs_fast.crs.sequence import GCRS, Layout
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.trie import ItemFilter
from python_tests.helpers import sharpen

from ..tiny_system import DIALOGUE, ITEMS, dialogues, say, system

LONG = Dialogue(
    "long",
    tuple(
        say(RECOMMENDER, f"how about Film {n % 8}", f"i{n % 8}")
        if n % 2
        else say(SEEKER, "no, " * (n % 5) + f"not Film {n % 7}", f"i{n % 7}")
        for n in range(14)
    ),
)
SPLIT = (LONG, DIALOGUE, *dialogues(5))
MODELS = ["no window", "mistral", "bloom"]


def bundle(architecture, max_length=768, layout=GCRS):
    """Mistral's window is too short for some contexts; Bloom holds no token tree. Random weights,
    large enough that answers differ from turn to turn."""
    _, tokenizer, trie, vocab, control, builder = system(max_length)
    torch.manual_seed(0)
    size = dict(vocab_size=len(tokenizer), hidden_size=32, tie_word_embeddings=False)
    model: Any
    if architecture == "bloom":
        model = BloomForCausalLM(BloomConfig(**size, n_layer=2, n_head=2))
    else:
        size |= dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
        window = 120 if architecture == "mistral" else None
        config = MistralConfig(**size, intermediate_size=64, sliding_window=window)
        model = MistralForCausalLM(config)
    sharpen(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[vocab.begin] *= 3  # some replies name items
    builder = builder.with_layout(layout)
    return Bundle(model.eval(), tokenizer, trie, vocab, control, ITEMS, builder, None)


def reserve(bundle, words):
    return min(2 * bundle.vocab.num_levels + 8 + words, bundle.builder.max_length // 2)


@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
@pytest.mark.parametrize("max_length", [768, 110])
@pytest.mark.parametrize("architecture", MODELS)
def test_predictions_are_those_of_each_turn_alone(architecture, max_length):
    system, words = bundle(architecture, max_length), 5
    builder, how = system.builder, dict(num_beams=4)
    got = predict(
        system, SPLIT, max_new_tokens=words, free_rankings=True, tokens_per_batch=900,
        progress=False, **how,
    )  # fmt: skip
    assert len(got) == sum(t.role == RECOMMENDER for d in SPLIT for t in d.turns)
    assert {p.mode for p in got} == {CHAT, REC}
    for p in got:
        turns = SPLIT[p.dialogue].turns
        context = builder.context(turns[: p.turn], reserve=reserve(system, words))
        alone = TurnBatch(system, [context])
        assert p.rec_probability == pytest.approx(float(alone.rec_probability[0]), abs=1e-5)
        found = alone.rank(**how)
        ranking, scores = found.items[0], found.item_scores[0]
        asked = p.gold_items or p.chooses_rec
        assert p.ranking == (ranking if asked else None)
        assert p.scores == (pytest.approx(scores, abs=1e-4) if asked else None)
        if set(p.gold_items) - set(p.named) and p.named:
            deny = ItemFilter.stack([system.trie.filter(deny=set(p.named))])
            assert p.new_ranking == alone.rank(filters=deny, **how).items[0]
        prefix = builder.prefix(REC, ranking[0]) if p.gold_items else builder.prefix(CHAT)
        (reply,) = TurnBatch(system, [context]).write([prefix], max_new_tokens=words)
        titles = dict.fromkeys((item.item_id for item in ITEMS), "<movie>")
        assert p.reply == builder.decode(reply, titles)


@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
@pytest.mark.parametrize("modes", [True, False])
@pytest.mark.parametrize("architecture", MODELS)
def test_own_words_are_those_of_each_turn_alone(architecture, modes):
    system, words = bundle(architecture, layout=Layout(mode=modes, item=False)), 12
    builder = system.builder
    got = predict_in_words(system, SPLIT, num_beams=4, max_new_tokens=words, progress=False)
    found = 0
    for p in got:
        context = builder.context(SPLIT[p.dialogue].turns[: p.turn], reserve=reserve(system, words))
        mode = builder.prefix(REC if p.gold_items else CHAT)[: 2 * modes]
        (said,) = TurnBatch(system, [context[:-1]]).write(
            [[context[-1], *mode]], max_new_tokens=words
        )
        opened = builder.begin in said
        if not modes:
            assert p.mode == (REC if opened else CHAT)
        if not (opened and p.gold_items):
            assert p.ranking is None
            continue
        found += 1
        before = [*context, *mode, *said[: said.index(builder.begin)]]
        plain = replace(system, builder=builder.with_layout(Layout(mode=False, item=False)))
        assert p.ranking == TurnBatch(plain, [before]).rank(num_beams=4).items[0]
    assert 0 < found < len(got)


def test_each_token_is_read_once():
    system = bundle("no window")
    read = []
    system.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    predictions = predict(system, [LONG], replies=False, num_beams=4, progress=False)
    contexts = [system.builder.context(LONG.turns[: p.turn]) for p in predictions]
    read.clear()
    (chunk,) = chunks(contexts, [0] * len(contexts), 10_000)
    for _ in walk(system, contexts, [False] * len(contexts), chunk, 10_000):
        pass
    # The longest context, and of each its last token once more.
    assert sum(read) == len(contexts[-1]) + len(contexts)


def test_chains_and_chunks_hold_every_context_once():
    contexts = [[1], [1, 2], [1, 2, 3], [9, 3], [9, 3, 4], [1], [1, 7]]
    groups = [0, 0, 0, 0, 0, 1, 1]
    assert chains(contexts, groups) == [[4, 3], [2, 1, 0], [6, 5]]
    assert chunks(contexts, groups, 2) == [[[6, 5]], [[4, 3]], [[2, 1, 0]]]
    assert chunks(contexts, groups, 6) == [[[6, 5], [4, 3]], [[2, 1, 0]]]
    assert chunks(contexts, groups, 9) == [[[6, 5], [4, 3], [2, 1, 0]]]
    assert chunks([], [], 6) == []


def test_a_branch_of_a_cache_leaves_it_whole():
    """Also one that takes every row, which `Prompt.select` would hand over uncopied."""
    system = bundle("no window")
    contexts = [system.builder.context(d.turns[:1]) for d in SPLIT[:2]]
    trunk = TurnCache.of(system, contexts)
    before = [layer.keys.clone() for layer in trunk.prompt.cache.layers]
    for rows in ([0, 1], [1, 0], [1, 1, 0]):
        TurnBatch(system, [contexts[r][:3] for r in rows], trunk.branch(rows)).rank(num_beams=2)
    for layer, keys in zip(trunk.prompt.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_what_a_masked_column_held_is_not_read():
    """Going back leaves a row's later tokens behind its mask: an open SID there must not bind."""
    system = bundle("no window")
    builder = system.builder
    longer = [*builder.context([]), *builder.item("i3")[:-2]]
    contexts = [builder.context(SPLIT[0].turns[:1]), longer]
    assert len(contexts[0]) > len(contexts[1])
    cache = TurnCache()
    TurnBatch(system, contexts, cache)
    shorter = [contexts[0], builder.context([])]
    prefixes = [builder.prefix(CHAT)] * 2
    got = TurnBatch(system, shorter, cache).write(prefixes, max_new_tokens=6)
    assert got == TurnBatch(system, shorter).write(prefixes, max_new_tokens=6)


def test_replies_are_written_again_behind_the_same_items():
    system = bundle("llama")
    made = predict(system, [DIALOGUE, *dialogues(3)], num_beams=4, max_new_tokens=6, progress=False)
    blank = [replace(p, reply=None, reply_items=[], invalid_items=0) for p in made]
    split = [DIALOGUE, *dialogues(3)]
    again = write_replies(system, split, blank, max_new_tokens=6, progress=False)
    assert again == made
    assert all(p.reply is None for p in blank)
    other = [replace(p, mode="of another model", rec_probability=2.0) for p in blank]
    kept = write_replies(system, split, other, max_new_tokens=6, progress=False)
    assert [(p.mode, p.rec_probability) for p in kept] == [("of another model", 2.0)] * len(other)
    chosen = write_replies(system, split, blank, only_chosen=True, max_new_tokens=9, progress=False)
    for p in chosen:
        if p.gold_items:
            assert {*p.reply_items} <= {p.ranking[0]}
    assert any(p.gold_items and p.reply_items for p in chosen)
    drawn = [
        write_replies(
            system, split, blank, sampling=Sampling(True, 1.0), max_new_tokens=6, progress=False
        )
        for _ in range(2)
    ]
    assert [p.reply for p in drawn[0]] != [p.reply for p in drawn[1]]
    assert [p.ranking for p in drawn[0]] == [p.ranking for p in made]
