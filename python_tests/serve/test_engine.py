"""The engine: answers of many requests at once are those of `Recommender.respond` one by one."""

import asyncio

import pytest

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Recommender
from crs_fast.serve import Done, Engine, Ranked, Text, TurnRequest
from python_tests.crs.tiny_system import ITEMS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6.0)  # default initialisation is nearly uniform
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


def test_a_turn_is_that_of_respond(recommender):
    expected = recommender.respond(ASK, "rec", 3, max_new_tokens=6)
    request = TurnRequest(ASK, "rec", 3, max_new_tokens=6, repeat_named=True)
    with Engine(recommender) as engine:
        answer = engine.submit(request).result(20)
    assert (answer.mode, answer.items, answer.text) == ("rec", expected.items, expected.text)


def test_events_reach_threads_and_event_loops(recommender):
    async def read(ticket):
        return [event async for event in ticket]

    with Engine(recommender) as engine:
        ticket = engine.submit(TurnRequest(ASK, "rec", max_new_tokens=6))
        events = list(ticket)
        assert asyncio.run(read(ticket)) == events
    assert isinstance(events[0], Ranked)
    assert isinstance(events[-1], Done)
    text = "".join(event.delta for event in events[1:-1])
    assert {type(event) for event in events[1:-1]} == {Text}
    assert text == events[-1].answer.text
