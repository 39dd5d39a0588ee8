"""Served turns whose beams are joined by the nearest neighbours by text: they are those of
`Recommender.respond`, and items that a change brings are reached by their texts."""

from dataclasses import replace

import pytest
import torch

from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.joined_beams import JoinedBeams
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.text_neighbours import TextNeighbours
from crs_fast.serve import CatalogueStore, Engine, TurnRequest
from python_tests.crs.evaluation.test_predict import bundle as bundle_of

from .test_engine import LONG, assert_same, mixed_requests, responded

WORDS = ("zebra", *map(str, range(10)))
ZEBRA = Item("n1", "Zebra crossing", 2026)
WANTED = [{"role": "user", "content": "a zebra, please"}]


def embed(texts):
    return torch.tensor([[float(text.lower().count(word)) for word in WORDS] for text in texts])


def joined(recommender, share=0.5):
    return recommender.with_join(
        JoinedBeams(TextNeighbours(recommender.bundle.items, embed, num_items=3), share)
    )


def test_mixed_requests_at_once_are_answered_as_each_alone(recommender):
    by_text = joined(recommender)
    requests = mixed_requests()
    for at in range(0, len(requests), 2):
        requests[at] = replace(requests[at], num_items=1, num_beams=2)
    with Engine(by_text, max_wait=0.05) as engine:
        answers = [ticket.result(60) for ticket in [engine.submit(r) for r in requests]]
        assert engine.metrics["admissions"] < len(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, responded(by_text, request))
        items = {item_id for item_id, _, _ in answer.items}
        assert not items & {*request.exclude}
        assert request.allow is None or items <= {*request.allow}
    assert any(
        responded(recommender, request).items != answer.items
        for request, answer in zip(requests, answers, strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*attention window")
def test_turns_that_are_answered_alone_are_joined_too():
    by_text = joined(Recommender(bundle_of("mistral")))
    request = TurnRequest(LONG, "rec", 3, num_beams=4, max_new_tokens=4, repeat_named=True)
    with Engine(by_text, max_wait=0.0) as engine:
        assert_same(engine.submit(request).result(60), responded(by_text, request))


@pytest.mark.parametrize("on_disk", [True, False])
def test_new_items_are_reached_by_their_texts(recommender, tmp_path, on_disk):
    engine = Engine(joined(recommender, 0.9))
    store = CatalogueStore(
        engine.recommender,
        tmp_path if on_disk else None,
        on_swap=lambda new: engine.swap(new.recommender, new.version),
    )

    def best(**how):
        request = TurnRequest(WANTED, "rec", 1, num_beams=1, max_new_tokens=2, **how)
        return [item_id for item_id, _, _ in engine.submit(request).result(60).items]

    with engine:
        before = best()
        store.change(add=[ZEBRA], remove=["i1"], sids=[[3, 3, 3]])
        assert best() == ["n1"] != before
        assert best(exclude=["n1"]) != ["n1"]
        store.rollback("0")
        assert best() == before
        store.rollback("1")
        assert best() == ["n1"]
        store.change(remove=["n1"])
        assert best() != ["n1"]


def test_a_version_encodes_only_texts_that_no_version_before_it_had(recommender, tmp_path):
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return embed(texts)

    neighbours = TextNeighbours(recommender.bundle.items, encode)
    store = CatalogueStore(recommender, tmp_path)
    follower = CatalogueStore(recommender.with_join(JoinedBeams(neighbours)), tmp_path)
    for number, sid in enumerate([[3, 3, 3], [3, 3, 2], [3, 3, 1]]):
        del encoded[:]
        item = Item(f"n{number}", f"Zebra {number}")
        store.change(add=[item], sids=[sid])
        follower.refresh()
        assert encoded == [item.text()]
    for version in ("0", "3", "1", "2"):
        follower.rollback(version)
    assert encoded == [item.text()]
