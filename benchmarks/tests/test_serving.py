"""The load test's clients, on a method that answers at once."""

import os
import random
import time

import pytest

from benchmarks import tables
from benchmarks.serving import __main__ as cli
from benchmarks.serving import soak
from benchmarks.serving.load import Memory, Record, closed_loop, every, open_loop
from benchmarks.serving.methods import Answered, Workload
from benchmarks.serving.seekers import conversations
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Recommender
from crs_fast.serve import Busy, Engine
from crs_fast.serve.app import create_app
from crs_fast.serve.catalogue import CatalogueStore
from python_tests.crs.tiny_system import ITEMS, system
from python_tests.serve.doubles import running


def test_seekers_say_their_lines_and_differ():
    names = [next(conversations(client, 4)).name for client in range(4)]
    assert len(set(names)) == 4
    conversation = next(conversations(0, 4))
    said = 0
    while conversation.say():
        said += 1
        conversation.hear("Film 1", ["i1"])
    assert said == len(conversation.lines) > 0
    assert conversation.messages[-1] == {"role": "assistant", "content": "Film 1", "shown": ["i1"]}


@pytest.mark.parametrize("loop", [closed_loop, open_loop])
def test_a_loop_counts_what_its_clients_see(loop):
    def method(conversation):
        time.sleep(0.002)
        turn = len(conversation.messages)
        if turn == 1 and conversation.name.endswith("7"):
            raise Busy("full")
        if turn == 1 and conversation.name.endswith("8"):
            raise RuntimeError("no answer, say")
        return Answered("text", ["i1" if turn == 1 else "gone"], [], 0)

    record = Record(lambda answer: set(answer.item_ids) <= {"i1"})
    row = loop(method, record, 80 if loop is open_loop else 4, 0.4)
    assert row["turns"] == len(record.seconds) > 10
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["failures"] > 0
    assert row["busy"] > 0
    assert row["first_failure"] == "RuntimeError: no answer, say"
    if loop is closed_loop:
        assert row["wrong_items"] > 0


def test_memory_is_noted_beside_a_run():
    memory = Memory()
    with every(0.01, memory.note):
        closed_loop(lambda c: Answered("", [], [], 0), Record(lambda a: True), 1, 0.1)
    assert min(memory.row().values()) > 0


def test_a_table_has_the_columns_that_there_are():
    text = cli.table([{"method": "engine", "p50_ms": 3.0}, {"method": "respond"}])
    assert text.splitlines() == [
        "| method | p50_ms |",
        "| --- | --- |",
        "| engine | 3.0 |",
        "| respond |  |",
    ]


def test_the_docs_compare_with_one_respond_at_a_time():
    where = {
        "model": "small", "parameters": 2_000_000, "commit": "abc", "dirty": False, "isa": "avx2",
        "device": "cpu", "machine": {"cpu": "a CPU", "threads": 2}, "versions": {"torch": "2.13"},
    }  # fmt: skip
    seen = {"p50_ms": 5.0, "p95_ms": 6.0, "p99_ms": 7.0, "turns": 9, "failures": 0, "busy": 1}
    common = {**where, **seen, "wrong_items": 0}
    rows = [
        {**common, "method": "respond", "clients": 1, "turns_per_second": 2.0},
        {**common, "method": "engine", "clients": 8, "turns_per_second": 7.0, "swaps": 3,
         "warm_mib": 1200, "end_mib": 1201},
    ]  # fmt: skip
    text = tables.serving_table(rows)
    assert "| respond | 1 | 2 | 1× | 5 | 6 | 7 | 9 | 1 | 0 |  |  |" in text
    assert "| engine | 8 | 7 | 3.5× | 5 | 6 | 7 | 9 | 1 | 0 | 3 | 1,200 to 1,201 |" in text
    assert "On a GPU: not measured." in text
    assert "On a CPU" not in text


def test_a_model_that_cannot_choose_is_told_its_modes():
    conversation = next(conversations(0, 4))
    modes = []
    while conversation.say():
        modes.append(Workload(forces_mode=True).mode(conversation))
        conversation.hear("Film 1", ["i1"])
    assert modes[0] == "chat"
    assert set(modes[1:]) <= {"rec"}
    assert Workload().mode(conversation) is None


def test_a_soak_counts_what_is_wrong():
    """A short one, of every kind of call, against a server of this process."""
    model, tokenizer, trie, vocab, control, builder = system()
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None)
    store = CatalogueStore(
        Recommender(bundle), on_swap=lambda new: engine.swap(new.recommender, new.version)
    )
    engine = Engine(store.current.recommender, version=store.current.version)
    with running(create_app(engine, store=store, name="soak")) as url:
        client = soak.Soak(url, "soak", [item.item_id for item in ITEMS])
        conversation, draw = next(conversations(0, 1)), random.Random(0)
        conversation.say()
        for kind in (
            client.json_turn, client.event_turn, client.openai_turn, client.openai_events,
            client.cancelled, *[client.bad_body] * 20,
        ):  # fmt: skip
            kind(conversation, draw)
        client.swap()
        client.swap()
        row = soak.run(client, soak.Process(os.getpid()), 0.2, clients=1, swap=0.1)
        assert (row["swaps"] >= 2, row["failures"], row["illegal_items"]) == (True, 0, 0), row
        answer = {"items": [{"id": "gone"}], "named": [], "text": "", "invalid_items": 0}
        client._check(conversation, {"exclude": []}, {**answer, "catalogue_version": "0"})
        with pytest.raises(RuntimeError, match="status 400 instead of 200"):
            client._post("/v1/respond", b"{")
    assert client.counts["illegal_items"] == 1
    row |= {"illegal_items": 1, "end_mib": 2 * row["warm_mib"]}
    assert soak.faults(row)[0] == "illegal_items: 1"
    assert "memory grew" in soak.faults(row)[-1]
