"""Candidates that join the beams, against scores of the whole catalogue."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from crs_fast.crs import shared_encoder, turn
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import SEEKER, Item
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.item_encoder import ItemEncoder
from crs_fast.crs.joined_beams import JoinedBeams
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.shared_encoder import SharedEncoder
from crs_fast.crs.text_neighbours import TextNeighbours
from crs_fast.crs.turn import TurnBatch
from crs_fast.quantize import RQKMeans, encode_texts
from python_tests.helpers import sharpen

from .tiny_system import DIALOGUE, ITEMS, dialogues, say, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
CANDIDATES = [("i0", math.log(0.5)), ("i1", math.log(0.3))]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


def always(candidates):
    return lambda contexts: [candidates] * len(contexts)


def by_hand(exact, beams, candidates, share, rule, allowed):
    """The joined list from the scores of the whole catalogue."""
    q = dict(candidates)
    floor = min(q.values()) if rule == "product" else -math.inf
    scores = {}
    for i in dict.fromkeys([*beams, *q]):
        if i in allowed and rule == "product":
            scores[i] = (1 - share) * exact[i] + share * q.get(i, floor)
        elif i in allowed:
            p = (1 - share) * math.exp(exact[i]) + share * math.exp(q.get(i, floor))
            scores[i] = math.log(p) if p else -math.inf
    return sorted(scores.items(), key=lambda s: -s[1])


@pytest.mark.parametrize("rule", ["mixture", "product"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_joined_scores_are_exact(recommender, rule, share):
    exact = {i: s for i, _, s in recommender.rank(ASK, 8, num_beams=8)}
    beams = [i for i, _, _ in recommender.rank(ASK, 2, num_beams=2)]
    assert len(exact) == len(ITEMS)
    # The best beam, and two items that no beam names.
    candidates = [([*exact][-1], math.log(0.5)), (beams[0], -1.0), ([*exact][-3], math.log(0.1))]
    join = JoinedBeams(always(candidates), share, rule)
    for exclude in ((), ([*exact][-1],)):
        got = recommender.rank(ASK, 2, num_beams=2, join=join, exclude=exclude)
        allowed = {*exact} - {*exclude}
        own = [i for i, _, _ in recommender.rank(ASK, 2, num_beams=2, exclude=exclude)]
        expected = by_hand(exact, own, candidates, share, rule, allowed)[:2]
        assert [i for i, _, _ in got] == [i for i, _ in expected]
        assert [s for *_, s in got] == pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.parametrize("rule", ["mixture", "product"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_weight_of_zero_leaves_out_what_is_impossible(rule, share):
    join = JoinedBeams(always([]), share, rule)
    sure, impossible = {"a": -1.0, "b": -2.0}, {"a": -math.inf, "b": -math.inf}
    model, source = (sure, impossible) if share == 0 else (impossible, sure)
    assert join.ranked(model, [*source.items()]) == [("a", -1.0), ("b", -2.0)]


def test_the_source_is_asked_only_where_a_list_is_ranked(recommender):
    asked = []

    def source(contexts):
        asked.append(len(contexts))
        return [CANDIDATES] * len(contexts)

    join = JoinedBeams(source)
    recommender.respond(ASK, mode="chat", join=join, max_new_tokens=3)
    recommender.respond(ASK, item="i0", join=join, max_new_tokens=3)
    assert asked == []
    recommender.respond([ASK, ASK], mode="rec", join=join, max_new_tokens=3)
    assert asked == [2]
    answers = predict(recommender.bundle, dialogues(4), num_beams=3, join=join, progress=False)
    ranked = sum(bool(p.ranking) for p in answers)
    ranked += sum(len(p.messages) for p in answers)
    assert sum(asked[1:]) == ranked < len(answers)


@pytest.mark.parametrize("most_beams", [2, 7])
def test_the_search_for_candidates_keeps_to_the_memory_of_a_beam_step(
    recommender, monkeypatch, most_beams
):
    candidates = [(item.item_id, -1.0 - n) for n, item in enumerate(ITEMS)]
    join = JoinedBeams(lambda contexts: [candidates[: 6 - n] for n in range(len(contexts))], 0.5)
    other = [{"role": "user", "content": "Film 1"}]
    expected = recommender.rank([ASK, other, ASK], 1, num_beams=1, join=join)
    searches, rank = [], TurnBatch.rank

    def noted(turns, rows=None, **search):
        searches.append((len(rows), search["num_beams"]))
        return rank(turns, rows, **search)

    vocab_size = recommender.bundle.model.config.vocab_size
    monkeypatch.setattr(turn, "_MOST_LOGITS", most_beams * vocab_size)
    monkeypatch.setattr(TurnBatch, "rank", noted)
    got = recommender.rank([ASK, other, ASK], 1, num_beams=1, join=join)
    assert all(rows * beams <= most_beams for rows, beams in searches[1:])
    for one, wanted in zip(got, expected, strict=True):
        assert [i for i, *_ in one] == [i for i, *_ in wanted]
        assert [s for *_, s in one] == pytest.approx([s for *_, s in wanted], abs=1e-5)


def test_respond_writes_about_the_joined_top_item(recommender):
    join = JoinedBeams(always([("i0", -1e-6)]), 0.99)
    response = recommender.respond(ASK, mode="rec", join=join, max_new_tokens=3)
    assert response.items[0][0] == "i0"
    given = recommender.respond(ASK, mode="rec", item="i0", max_new_tokens=3)
    assert response.text == given.text


def test_predictions_are_joined_and_new_rankings_leave_out_named_items(recommender):
    split = (DIALOGUE, *dialogues(4))
    join = JoinedBeams(always(CANDIDATES), 0.6)
    answers = predict(
        recommender.bundle, split, num_beams=3, replies=False, join=join, progress=False
    )
    rankings = [p for p in answers if p.ranking]
    assert rankings
    assert all(p.ranking[0] == "i0" for p in rankings)
    for p in rankings:
        assert p.scores == sorted(p.scores, reverse=True)
        if p.new_ranking is not None:
            assert not {*p.new_ranking} & {*p.named}
            assert ("i0" in p.new_ranking) == ("i0" not in p.named)


def test_neighbours_are_nearest_by_cosine_to_the_last_turns():
    vectors = torch.nn.functional.normalize(torch.randn(len(ITEMS), 5), dim=-1)
    table = {item.text(): v for item, v in zip(ITEMS, vectors, strict=True)}
    told = torch.nn.functional.normalize(torch.randn(5), dim=-1)

    def encode(texts):
        return torch.stack([table.get(text, told) for text in texts])

    source = TextNeighbours(ITEMS, encode, num_items=3, turns=1, temperature=0.5)
    (found,) = source([(say(SEEKER, "old"), say(SEEKER, "new"))])
    centre = vectors.mean(0)
    cosines = torch.cosine_similarity(vectors - centre, (told - centre)[None])
    log_q = (cosines / 0.5).log_softmax(0)
    assert [i for i, _ in found] == [ITEMS[n].item_id for n in log_q.topk(3).indices.tolist()]
    assert [q for _, q in found] == pytest.approx(log_q.topk(3).values.tolist(), abs=1e-5)
    assert source([]) == []


def test_neighbours_in_another_catalogue_are_those_of_a_new_source():
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return torch.tensor([[text.count(c) for c in "zFilm 0123456789"] for text in texts]).float()

    items = (*ITEMS[3:], Item("n1", "zzz"), replace(ITEMS[0], title="Filmz 7"))
    contexts = [(say(SEEKER, text),) for text in ("a zebra", "Filmz 77", "Film 4")]
    expected = TextNeighbours(items, encode, num_items=7)(contexts)
    source = TextNeighbours(ITEMS, encode, num_items=7)
    del encoded[:]
    changed = source.for_items(items)
    assert encoded == [item.text() for item in items[-2:]]
    for one, other in zip(changed(contexts), expected, strict=True):
        assert [i for i, _ in one] == [i for i, _ in other]
        assert [q for _, q in one] == pytest.approx([q for _, q in other], abs=1e-5)
    assert expected[0][0][0] == "n1"
    assert "n1" not in dict(source(contexts)[0])


@pytest.fixture(scope="module")
def quantizer():
    return RQKMeans(levels=3, codes=4, seed=0).fit(encode_texts([i.text() for i in ITEMS], counted))


def counted(texts):
    return torch.tensor([[text.count(c) for c in "zFilm 0123456789"] for text in texts]).float()


def test_one_encoder_on_the_models_device_serves_sids_and_neighbours(
    recommender, quantizer, monkeypatch
):
    loaded, encoded = [], []

    def encode(texts):
        encoded.extend(texts)
        return counted(texts)

    def load(encoder, device=None):
        loaded.append((encoder, device))
        return encode

    monkeypatch.setattr(shared_encoder, "load_encoder", load)
    own = Recommender(recommender.bundle, item_encoder=ItemEncoder(quantizer, "a name"))
    by_text = own.with_join(0.3)
    assert loaded == [("a name", recommender.bundle.model.device)]
    del encoded[:]
    new = Item("n1", "zzz")
    changed = by_text.with_catalogue(add=[new])
    changed.with_catalogue(remove=["n1"]).with_catalogue(add=[new], remove=["i1"])
    assert encoded == [new.text()]
    assert len(loaded) == 1


def test_one_thread_at_a_time_is_in_the_encoder(recommender, quantizer):
    inside = threading.Lock()

    def encode(texts):
        assert inside.acquire(blocking=False), "two threads are in the encoder"
        time.sleep(0.002)
        inside.release()
        return counted(texts)

    own = Recommender(recommender.bundle, item_encoder=ItemEncoder(quantizer, encode))
    by_text = own.with_join(0.3)
    query = [(say(SEEKER, "zebra"),)]
    with ThreadPoolExecutor(2) as pool:
        queries = [pool.submit(by_text.join.candidates, query) for _ in range(20)]
        changes = [
            pool.submit(by_text.with_catalogue, [Item(f"n{n}", "z" * n)]) for n in range(1, 11)
        ]
        assert all(one.result() for one in [*queries, *changes])


def test_as_many_texts_are_remembered_as_two_catalogues_have():
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return counted(texts)

    encoder = SharedEncoder(encode)
    encoder.encode_items(["z"])
    encoder.encode_items(["z"])
    assert encoded == ["z", "z"]  # nobody has a catalogue
    encoder.remember(dict(zip("abc", counted("abc"), strict=True)))
    for text in "defgh":
        encoder.encode_items(["a", text])
    del encoded[:]
    rows = encoder.encode_items([*"hagfed", "m"])
    assert encoded == ["m"]
    assert torch.equal(rows[-1:], encode_texts(["m"], counted))
    encoder.encode_items(["c"])
    assert encoded == ["m", "c"]


def test_a_recommender_has_a_join_of_its_own(recommender):
    join = JoinedBeams(always(CANDIDATES), 0.6)
    own = recommender.with_join(join)
    assert own.rank(ASK, 3) == recommender.rank(ASK, 3, join=join) != recommender.rank(ASK, 3)
    other = JoinedBeams(always([("i7", -0.1)]), 0.9)
    assert own.rank(ASK, 3, join=other) == recommender.rank(ASK, 3, join=other)
    assert own.with_join(None).rank(ASK, 3) == recommender.rank(ASK, 3)
    answers = own.with_catalogue(remove=["i5"]).respond(ASK, "rec", 3, max_new_tokens=2)
    assert answers.items[0][0] == "i0"


@pytest.mark.parametrize("name", [None, "the catalogue's"])
def test_a_share_joins_the_nearest_neighbours_by_text(recommender, name, monkeypatch):
    """By the encoder that made the SIDs, if its name is known."""

    def encode(texts):
        return torch.tensor([[text.count(c) for c in "Film 0123456789"] for text in texts]).float()

    monkeypatch.setattr(
        shared_encoder, "load_encoder", lambda one, device: {name: encode, encode: encode}[one]
    )
    made = Recommender(recommender.bundle, item_encoder=name and ItemEncoder(None, name))
    join = JoinedBeams(TextNeighbours(ITEMS, encode), 0.3)
    assert made.with_join(0.3).rank(ASK, 3) == recommender.rank(ASK, 3, join=join)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: JoinedBeams(always(CANDIDATES), 2), r"share must lie in \[0, 1\] \(got 2\)"),
        (lambda r: JoinedBeams(always(CANDIDATES), rule="x"), "rule must be one of"),
        (lambda r: r.with_join(1.5), r"share must lie in \[0, 1\] \(got 1.5\)"),
        (lambda r: r.with_join(True), r"share must be a number in \[0, 1\] \(got True\)"),
        (lambda r: JoinedBeams(always([]), "0.1"), r"share must be a number .* \(got '0.1'\)"),
        (lambda r: TextNeighbours(ITEMS, lambda t: torch.ones(len(t), 2), turns=0), "turns must"),
        (
            lambda r: TextNeighbours(ITEMS, lambda t: t, embeddings=torch.ones(2, 2)),
            "embeddings must be one row per item",
        ),
        (
            lambda r: r.rank(ASK, normalize="legal", join=JoinedBeams(always(CANDIDATES))),
            "normalize must be one of",
        ),
        (
            lambda r: r.rank(ASK, join=JoinedBeams(lambda contexts: []), num_beams=3, num_items=2),
            r"source must give one list for each of 1 conversations \(got 0\)",
        ),
        (
            lambda r: predict(
                r.bundle, dialogues(2), join=JoinedBeams(lambda contexts: []), progress=False
            ),
            "source must give one list for each",
        ),
    ],
)
def test_bad_input(recommender, make, message):
    with pytest.raises(ValueError, match=message):
        make(recommender)
