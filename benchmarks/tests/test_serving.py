"""The load test's clients, on a method that answers at once."""

import time

import pytest

from benchmarks.serving import __main__ as cli
from benchmarks.serving.load import Memory, Record, closed_loop, every, open_loop
from benchmarks.serving.methods import Answered
from benchmarks.serving.seekers import conversations
from crs_fast.serve import Busy


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
