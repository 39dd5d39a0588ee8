"""Recommender.respond and the turn engine, on a tiny random model."""

import copy
import dataclasses
import threading

import pytest
import torch

from crs_fast.crs import turn as turn_module
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.decode import Capability, SidLogitsProcessor, capability, recommend
from crs_fast.decode.lm.cache import GrowingLayer
from crs_fast.trie import SidTrie
from python_tests.helpers import sharpen

from .tiny_system import ITEMS, SIDS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
LONGER = [
    *ASK,
    {"role": "assistant", "content": "Film 2 (1992) maybe."},
    {"role": "seeker", "content": "seen it"},
]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
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
    assert (nothing.mode, nothing.items) == ("chat", [])


@pytest.mark.parametrize("mode", ["rec", "chat"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_reply_names_no_excluded_item(recommender, mode, do_sample):
    """Of a model that opens an item wherever it may."""
    everything = {item.item_id for item in ITEMS}
    exclude = [everything - {"i4"}, None, everything]
    begin = recommender.bundle.builder.begin

    def opens(module, inputs, logits):
        logits[..., begin] += 1000

    with recommender.bundle.model.get_output_embeddings().register_forward_hook(opens):
        turns = recommender.respond(
            [ASK, LONGER, ASK], mode, exclude=exclude, do_sample=do_sample, max_new_tokens=12
        )
    assert [set(turn.named) for turn in turns[::2]] == [{"i4"}, set()]
    assert set(turns[1].named) - {"i4"}
    assert {turn.invalid_items for turn in turns} == {0}


def test_a_reply_shows_no_excluded_item_that_shares_its_sid(recommender):
    old = recommender.bundle
    codes = {item.item_id: sid for item, sid in zip(ITEMS, SIDS, strict=True)}
    codes["i1"] = codes["i0"]  # i0 is the first of the two
    trie = SidTrie.from_sids(list(codes.values()), list(codes))
    builder = SequenceBuilder(old.tokenizer, old.vocab, old.control, trie_sids(trie))
    shared = Recommender(dataclasses.replace(old, trie=trie, builder=builder))

    def opens(module, inputs, logits):
        logits[..., old.vocab.begin] = 1e4
        return logits

    hook = old.model.lm_head.register_forward_hook(opens)
    try:
        for limits in ({"exclude": ["i0"]}, {"allow": ["i1"]}, {"exclude": ["i1"]}):
            kwargs = {"allow": ["i0", "i1"], "mode": CHAT, "max_new_tokens": 6, **limits}
            kept = "i0" if limits == {"exclude": ["i1"]} else "i1"
            turn = shared.respond(ASK, **kwargs)
            *_, streamed = shared.stream(ASK, **kwargs)
            assert set(turn.named) == {kept}
            assert shared.titles[kept] in turn.text
            assert len(set(turn.text.replace(shared.titles[kept], "").split())) == 0
            assert streamed == turn
    finally:
        hook.remove()


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
        ([ASK, ASK], {"exclude": [None]}, "one collection per request, 2"),
    ],
)
def test_bad_requests(recommender, messages, kwargs, message):
    with pytest.raises(ValueError, match=message):
        recommender.respond(messages, **kwargs)


@pytest.mark.parametrize("mode", ["rec", "chat"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_turn_never_copies_its_prompt(recommender, mode, cached, monkeypatch):
    """What it will need behind the prompt is there from the beginning."""
    copied, grown = [], GrowingLayer._grown

    def watched(self, old, like, before, length):
        copied.append(before)
        return grown(self, old, like, before, length)

    capability(recommender.bundle.model)  # whose probe has prompts of its own
    monkeypatch.setattr(GrowingLayer, "_grown", watched)
    cache = TurnCache() if cached else None
    recommender.respond([ASK, LONGER], mode, num_beams=30, cache=cache, max_new_tokens=40)
    assert set(copied) == {0}


class Counted(torch.nn.Module):
    """Counts the tokens that pass a model's embedding."""

    def __init__(self, model):
        super().__init__()
        self.tokens = 0
        model.get_input_embeddings().register_forward_hook(self.count)

    def count(self, module, inputs, output):
        self.tokens += inputs[0].numel()


def test_the_next_turn_reuses_the_cache(recommender):
    """A dialogue of three turns answers the same with and without it, and reads less."""
    counted = Counted(recommender.bundle.model)
    cache, messages = TurnCache(), []
    for said in ("I like Film 3", "any more of them?", "thank you and bye"):
        messages.append({"role": "user", "content": said})
        common = dict(mode="rec", num_items=3, max_new_tokens=5)
        before = counted.tokens
        fresh = recommender.respond(messages, **common)
        alone, before = counted.tokens - before, counted.tokens
        kept = recommender.respond(messages, cache=cache, **common)
        reused = counted.tokens - before
        assert [i for i, _, _ in kept.items] == [i for i, _, _ in fresh.items]
        assert kept.text == fresh.text
        assert (reused < alone) == (len(messages) > 1)
        messages.append({"role": "assistant", "content": "Film 5"})


def test_a_batch_of_dialogues_reuses_the_cache(recommender):
    cache = TurnCache()
    recommender.respond([ASK, LONGER], cache=cache, max_new_tokens=4)
    more = [[*ASK, {"role": "assistant", "content": "Film 1"}, *ASK], [*LONGER, *ASK]]
    kept = recommender.respond(more, cache=cache, mode="rec", max_new_tokens=6)
    fresh = recommender.respond(more, mode="rec", max_new_tokens=6)
    for a, b in zip(kept, fresh, strict=True):
        assert [i for i, _, _ in a.items] == [i for i, _, _ in b.items]
        assert a.text == b.text
    other = recommender.respond(ASK, cache=cache, mode="rec", max_new_tokens=6)  # another batch
    assert other.text == recommender.respond(ASK, mode="rec", max_new_tokens=6).text


def test_the_items_path_is_kept_from_the_tree(recommender):
    """After `rank`, a reply about an item it found feeds only what the tree has not seen."""
    bundle = recommender.bundle
    contexts = [bundle.builder.context(recommender.turns(m)) for m in (ASK, LONGER)]
    counted = Counted(bundle.model)
    replies, fed = [], []
    for ranked in (True, False):
        turns = TurnBatch(bundle, contexts)
        if ranked:
            items = [str(ids[0]) for ids in turns.rank(num_beams=6).items]
        before = counted.tokens
        prefixes = [bundle.builder.prefix(REC, item) for item in items]
        replies.append(turns.write(prefixes, max_new_tokens=1))
        fed.append(counted.tokens - before)
    assert replies[0] == replies[1]
    path = 2 + bundle.vocab.num_levels - 1  # <MODE=REC><BOI> and all codes but the last
    assert fed[1] - fed[0] == 2 * path


def test_several_items_stand_before_the_reply(recommender):
    two = recommender.respond(ASK, mode="rec", num_named=2, max_new_tokens=8)
    given = recommender.respond(ASK, item=[i for i, _, _ in two.items[:2]], max_new_tokens=8)
    assert given.text == two.text
    assert [i for i, _, _ in given.items] == [i for i, _, _ in two.items[:2]]


def test_a_reply_names_no_items_but_the_chosen_ones(recommender):
    """Of a model that opens an item wherever it may."""
    begin, common = recommender.bundle.builder.begin, dict(num_items=3, max_new_tokens=12)

    def opens(module, inputs, logits):
        logits[..., begin] += 1000

    def named(**options):
        torch.manual_seed(0)
        turns = recommender.respond([ASK, LONGER], do_sample=True, **common, **options)
        return [({i for i, _, _ in turn.items[:2]}, set(turn.named)) for turn in turns]

    with recommender.bundle.model.get_output_embeddings().register_forward_hook(opens):
        assert any(said - chosen for chosen, said in named(mode="rec", num_named=2))
        for chosen, said in named(mode="rec", num_named=2, only_chosen=True):
            assert said == chosen
        assert [said for _, said in named(item="i7", only_chosen=True)] == [{"i7"}, {"i7"}]
        assert named(mode="chat", only_chosen=True) == named(mode="chat")
        *_, last = recommender.stream(ASK, "rec", only_chosen=True, **common)
        assert last == recommender.respond(ASK, "rec", only_chosen=True, **common)
        assert set(last.named) == {last.items[0][0]}


def test_after_an_exception_the_model_and_the_next_turn_are_whole(recommender):
    model, cache = recommender.bundle.model, TurnCache()
    config = model.config.to_dict(), model.config._attn_implementation
    expected = recommender.respond(ASK, mode="rec", max_new_tokens=5)
    layer = model.get_decoder().layers[-1]
    calls = []

    def fails(*args):
        calls.append(args)
        if len(calls) > 2:
            raise RuntimeError("out of memory, say")

    handle = layer.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="say"):
        recommender.respond(ASK, mode="rec", cache=cache, max_new_tokens=5)
    handle.remove()
    assert (model.config.to_dict(), model.config._attn_implementation) == config
    for _ in range(2):
        again = recommender.respond(ASK, mode="rec", cache=cache, max_new_tokens=5)
        assert again.text == expected.text
        assert [i for i, _, _ in again.items] == [i for i, _, _ in expected.items]


@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_a_model_without_a_tree_takes_the_same_turn(recommender, monkeypatch):
    """The long way round gives the same mode, items and words."""
    expected = recommender.respond([ASK, LONGER], mode="rec", max_new_tokens=6)
    free = recommender.respond([ASK, LONGER], max_new_tokens=2)
    monkeypatch.setattr(turn_module, "capability", lambda model: Capability(None, "say"))
    plain = recommender.respond([ASK, LONGER], mode="rec", max_new_tokens=6)
    for a, b in zip(plain, expected, strict=True):
        assert [i for i, _, _ in a.items] == [i for i, _, _ in b.items]
        assert a.text == b.text
    again = recommender.respond([ASK, LONGER], max_new_tokens=2)
    for a, b in zip(again, free, strict=True):
        assert a.rec_probability == pytest.approx(b.rec_probability, abs=1e-4)


def test_a_catalogue_is_moved_once():
    """Turn after turn asks for it on the model's device."""
    trie, elsewhere = system()[2], torch.device("meta")
    assert turn_module.placed(trie, trie.device) is trie
    assert turn_module.placed(trie, elsewhere).device == elsewhere
    assert turn_module.placed(trie, elsewhere) is turn_module.placed(trie, elsewhere)


SETTINGS = [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 1}, {"num_beams": 4},
    {"num_beams": 2, "num_return_sequences": 2}, {"min_new_tokens": 30}, {"min_length": 80},
    {"suppress_tokens": [5]}, {"forced_bos_token_id": 7}, {"forced_eos_token_id": 7},
    {"bad_words_ids": [[9]]}, {"renormalize_logits": True}, {"max_time": 1e-9},
    {"stop_strings": ["x"]}, {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"},
    {"use_cache": False}, {"return_dict_in_generate": True}, {"guidance_scale": 2.0},
    {"output_scores": True, "return_dict_in_generate": True}, {"max_length": 3},
    {"do_sample": True, "temperature": 0.6, "top_k": 20}, {"begin_suppress_tokens": [1, 2, 3]},
]  # fmt: skip


@pytest.mark.parametrize("has_tree", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_the_models_own_settings_change_no_turn(recommender, has_tree, monkeypatch):
    """`generation_config`, a config without cache, training mode: the same turns, and the model
    stays as it was."""
    model = copy.deepcopy(recommender.bundle.model)
    if not has_tree:
        monkeypatch.setattr(turn_module, "_holds", lambda *_: False)
    theirs = Recommender(dataclasses.replace(recommender.bundle, model=model))

    def turns():
        how = dict(num_items=5, num_beams=8, max_new_tokens=8)
        return [theirs.respond([ASK, LONGER], mode, **how) for mode in ("rec", "chat")]

    wanted, own = turns(), model.generation_config
    for change in SETTINGS:
        model.generation_config = copy.deepcopy(own)
        for name, value in change.items():
            setattr(model.generation_config, name, value)
        assert turns() == wanted, change
    model.generation_config = own
    model.config.use_cache = False
    model.train()
    model.gradient_checkpointing_enable()
    assert turns() == wanted
    assert model.training
    assert model.config.use_cache is False


def test_a_model_of_nans_is_said_and_not_answered_by_a_chat_turn():
    model, tokenizer, trie, vocab, control, builder = system()
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    for mode in (None, "chat", "rec"):
        with pytest.raises(ValueError, match=r"respond: the model's logits must be numbers"):
            Recommender(bundle).respond(ASK, mode)


def test_threads_share_a_recommender(recommender):
    """Model, tokenizer, trie and title index with it."""
    questions = [ASK, LONGER, [{"role": "user", "content": "Film 6?"}]]
    expected = [recommender.respond(q, num_items=3, num_beams=4) for q in questions]
    fresh = Recommender(recommender.bundle)  # its title index is made by the threads
    answers = {}

    def ask(number):
        answers[number] = fresh.respond(questions[number % 3], num_items=3, num_beams=4)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        assert answer.text == expected[number % 3].text
        assert [i[:2] for i in answer.items] == [i[:2] for i in expected[number % 3].items]
    assert len(answers) == 6
