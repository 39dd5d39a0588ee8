"""The engine: answers of many requests at once are those of `Recommender.respond` one by one."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from crs_fast.crs import reply as reply_module
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.turn import TurnCache
from crs_fast.decode.lm import recorded_rows
from crs_fast.serve import (
    Busy,
    Cancelled,
    Done,
    Engine,
    Failed,
    Ranked,
    Text,
    TurnRequest,
)
from crs_fast.serve import turn as turn_module
from crs_fast.serve.ticket import Written
from python_tests.crs.evaluation.test_predict import bundle as bundle_of
from python_tests.crs.tiny_system import ITEMS, system
from python_tests.decode.recording_doubles import record_on_tape

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
LONGER = [
    *ASK,
    {"role": "assistant", "content": "Film 2 (1992) maybe."},
    {"role": "seeker", "content": "seen it"},
]
LONG = [{"role": "user", "content": "tell me more " * 20 + f"of Film {n}"} for n in range(3)]


def mixed_requests():
    """Requests that differ in everything that they may differ in."""
    requests = []
    for n, messages in enumerate((ASK, LONGER, LONG, ASK + LONGER, LONG[:1])):
        for mode in ("rec", "chat", None):
            requests.append(
                TurnRequest(
                    messages,
                    mode,
                    num_items=1 + n,
                    exclude=["i1", "i2"][: n % 3],
                    allow=[f"i{i}" for i in range(n + 2)] if n % 2 else None,
                    num_beams=(5, 6, 8)[n % 3],
                    max_new_tokens=(3, 9, 14)[(n + len(requests)) % 3],
                    repeat_named=bool(n % 2),
                )
            )
    return requests


def responded(recommender, request):
    """What `respond` answers to the request alone."""
    return recommender.respond(
        request.messages,
        request.mode,
        request.num_items,
        request.exclude,
        allow=request.allow,
        repeat_named=request.repeat_named,
        num_beams=request.num_beams,
        max_new_tokens=request.max_new_tokens,
    )


def assert_same(answer, expected):
    assert answer.mode == expected.mode
    assert [i[:2] for i in answer.items] == [i[:2] for i in expected.items]
    scores = [score for _, _, score in expected.items]
    assert [score for _, _, score in answer.items] == pytest.approx(scores, abs=1e-4)
    assert answer.rec_probability == pytest.approx(expected.rec_probability, abs=1e-4)
    assert (answer.text, answer.named) == (expected.text, expected.named)
    assert answer.invalid_items == 0


@pytest.mark.parametrize(
    "options", [{}, {"max_batch_tokens": 300, "max_running": 3}, {"max_chunk": 64}]
)
def test_mixed_requests_at_once_are_answered_as_each_alone(recommender, options):
    requests = mixed_requests()
    with Engine(recommender, max_wait=0.05, **options) as engine:
        tickets = [engine.submit(request) for request in requests]
        answers = [ticket.result(60) for ticket in tickets]
        figures = engine.metrics
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, responded(recommender, request))
    assert figures["answered"] == figures["admitted"] == len(requests)
    assert figures["illegal_items"] == 0
    assert figures["mean_step_rows"] > 1.5
    if not options:
        assert figures["admissions"] < len(requests)


def test_requests_that_join_while_others_are_written_change_nothing(recommender):
    """One after the other, each submitted when the one before has begun its reply."""
    requests = mixed_requests()[:8]
    with Engine(recommender, max_wait=0.0) as engine:
        tickets = []
        for request in requests:
            tickets.append(engine.submit(request))
            next(iter(tickets[-1]))
        answers = [ticket.result(60) for ticket in tickets]
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, responded(recommender, request))


def test_recorded_steps_change_no_answer(recommender, monkeypatch):
    """Replies join and leave the recorded steps, and the catalogue is swapped between them."""
    recorded = []

    def record(run, place):
        recorded.append(run)
        return record_on_tape(run, place)

    monkeypatch.setattr(reply_module, "can_record", lambda device: True)
    monkeypatch.setattr(recorded_rows, "record", record)
    monkeypatch.setattr(recorded_rows, "device_memory", lambda device: 1 << 40)
    other = recommender.with_catalogue(remove=["i6", "i7"])
    requests = mixed_requests()[::2]
    with Engine(recommender, max_wait=0.0, max_running=3, cuda_graphs=True) as engine:
        tickets = [engine.submit(request) for request in requests[:4]]
        next(iter(tickets[1]))
        engine.swap(other, "1")
        tickets += [engine.submit(request) for request in requests[4:]]
        answers = [ticket.result(60) for ticket in tickets]
        assert engine.metrics["mean_step_rows"] > 1.5
    for n, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        assert_same(answer, responded(recommender if n < 4 else other, request))
    count = len(recorded)
    assert 1 < count < engine.metrics["steps"] / 3
    with Engine(recommender) as engine:
        engine.submit(requests[0]).result(60)
    assert len(recorded) == count


class ForwardPasses:
    """The shapes of all that a model reads, in order."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self.note)

    def note(self, module, inputs):
        self.shapes.append(tuple(inputs[0].shape))


@pytest.fixture(scope="module")
def long_reader():
    """A recommender of long conversations."""
    model, tokenizer, trie, vocab, control, builder = system(max_length=3000)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6.0)
    return Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))


def test_a_long_prompt_does_not_stop_the_words_of_others(long_reader):
    """2,000 tokens are read in chunks, between which every reply in progress gets its next word;
    a short turn that comes later passes the long one."""
    short = TurnRequest(ASK, "rec", 3, num_beams=4, max_new_tokens=60, repeat_named=True)
    messages = [{"role": "user", "content": "tell me more " * 700}]
    long = replace(short, messages=messages, max_new_tokens=4, conversation="c")
    passes = ForwardPasses(long_reader.bundle.model)
    with Engine(long_reader, max_wait=0.0, max_chunk=64) as engine:
        first = [engine.submit(short) for _ in range(3)]
        for ticket in first:
            next(iter(ticket))
        begun = len(passes.shapes)
        last, later = engine.submit(long), engine.submit(short)
        answers = [ticket.result(60) for ticket in (*first, later)]
        shapes = passes.shapes[begun:]
        told = last.result(60)
        assert engine.metrics["chunks"] >= 2000 // 64
        again = engine.submit(long).result(60)
    passes.handle.remove()
    for answer in answers:
        assert_same(answer, responded(long_reader, short))
    for answer in (told, again):
        assert_same(answer, responded(long_reader, replace(long, conversation=None)))
    assert told.usage["prompt_tokens"] > 2000
    assert (told.usage["cached_tokens"], again.usage["cached_tokens"]) == (
        0,
        told.usage["prompt_tokens"] - 1,
    )
    chunks = [at for at, shape in enumerate(shapes) if shape == (1, 64)]
    assert len(chunks) > 5
    # While the short replies are written, a step of theirs follows each chunk.
    assert {shapes[at + 1][1] for at in chunks[:-1]} == {1}
    assert max(batch * length for batch, length in shapes) <= 64
    # The short turn that came behind the long one did not wait for it.
    assert answers[-1].timings["queue_ms"] < told.timings["prefill_ms"] / 2


def test_long_prompts_are_read_together_while_no_reply_is_written(long_reader):
    messages = [{"role": "user", "content": "tell me more " * 30}]
    turn = TurnRequest(messages, "rec", 3, num_beams=4, max_new_tokens=2)
    with Engine(long_reader, max_wait=0.2, max_chunk=64) as engine:
        for ticket in [engine.submit(turn) for _ in range(8)]:
            assert ticket.result(60).usage["prompt_tokens"] > 64
        assert (engine.metrics["admissions"], engine.metrics["chunks"]) == (1, 0)


def test_a_long_prompt_that_another_conversation_has_read_is_read_no_more(long_reader):
    messages = [{"role": "user", "content": "tell me more " * 60}]
    short = TurnRequest(ASK, "rec", 3, num_beams=4, max_new_tokens=60, repeat_named=True)
    long = TurnRequest(messages, "rec", 3, num_beams=4, max_new_tokens=4)
    with Engine(long_reader, max_wait=0.0, max_chunk=64) as engine:
        first = engine.submit(replace(long, conversation="a")).result(60)
        next(iter(engine.submit(short)))
        others = [engine.submit(replace(long, conversation=name)) for name in ("b", None)]
        for answer in (other.result(60) for other in others):
            assert_same(answer, first)
            assert answer.usage["cached_tokens"] == first.usage["prompt_tokens"] - 1
        assert engine.metrics["chunks"] == 0


def test_a_long_prompt_that_cannot_be_read_harms_no_other(long_reader):
    def fails(module, inputs):
        if inputs[0].shape == (1, 64):
            raise RuntimeError("out of memory, say")

    handle = long_reader.bundle.model.get_input_embeddings().register_forward_pre_hook(fails)
    short = TurnRequest(ASK, "rec", 3, num_beams=4, max_new_tokens=5, repeat_named=True)
    with Engine(long_reader, max_chunk=64) as engine:
        writing = engine.submit(replace(short, max_new_tokens=60))
        next(iter(writing))
        long = engine.submit(replace(short, messages=LONG))
        answer = engine.submit(short).result(60)
        with pytest.raises(RuntimeError, match="say"):
            long.result(60)
    handle.remove()
    assert_same(answer, responded(long_reader, short))


def test_groups_and_limits_of_one_request_change_no_other(recommender):
    """A list that a limit leaves short is ranked again, beside turns that have all they need."""

    def parity(item):
        return ["even" if int(item.item_id[1:]) % 2 == 0 else "odd"]

    grouped = Recommender(recommender.bundle, parity)
    base = TurnRequest(ASK, "rec", 4, num_beams=6, max_new_tokens=4, repeat_named=True)
    requests = [
        replace(base, groups=["Even"]),
        base,
        replace(base, max_per_group=1, messages=LONGER),
        replace(base, max_per_group={"odd": 1}),
        replace(base, groups=["none of them"]),
    ]
    with Engine(grouped, max_wait=0.05) as engine:
        answers = [ticket.result(60) for ticket in map(engine.submit, requests)]
    for request, answer in zip(requests[:4], answers, strict=False):
        expected = grouped.respond(
            request.messages, "rec", 4, groups=request.groups, num_beams=6, max_new_tokens=4,
            max_per_group=request.max_per_group,
        )  # fmt: skip
        assert_same(answer, expected)
    assert [len(answer.items) for answer in answers] == [4, 4, 2, 4, 0]
    assert answers[4].unknown_items == ["none of them"]


@pytest.mark.filterwarnings("ignore:.*longer than its attention window")
@pytest.mark.filterwarnings("ignore:.*longer than the model's attention window")
def test_turns_that_do_not_fit_into_the_window_are_answered_alone():
    windowed = Recommender(bundle_of("mistral"))
    requests = [TurnRequest(m, "rec", 3, num_beams=4, max_new_tokens=4) for m in (ASK, LONG)]
    requests = [replace(request, repeat_named=True) for request in requests]
    with Engine(windowed, max_wait=0.0) as engine:
        answers = [engine.submit(request).result(60) for request in requests]
        together = [ticket.result(60) for ticket in map(engine.submit, requests)]
    for request, *both in zip(requests, answers, together, strict=True):
        for answer in both:
            assert_same(answer, responded(windowed, request))


def test_callers_in_threads(recommender):
    requests = mixed_requests()
    with Engine(recommender) as engine, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: engine.submit(request).result(60), requests))
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, responded(recommender, request))


@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}, {"cache_bytes": 100_000}])
def test_the_next_turn_reads_only_its_new_words(recommender, options):
    """Conversations of several turns, at the same time, with others between them."""
    messages = [list(LONGER), list(ASK), list(LONG[:1])]
    with Engine(recommender, max_wait=0.02, **options) as engine:
        for turn in range(3):
            requests = [
                TurnRequest(list(m), "rec", 4, max_new_tokens=6, conversation=f"c{n}")
                for n, m in enumerate(messages)
            ]
            requests.append(TurnRequest(LONG, "rec", 4, max_new_tokens=6))
            tickets = [engine.submit(request) for request in requests]
            for request, ticket in zip(requests, tickets, strict=True):
                answer = ticket.result(60)
                assert_same(answer, responded(recommender, replace(request, conversation=None)))
                cached = answer.usage["cached_tokens"]
                if not options:
                    assert turn == 0 or cached > 0 or request.conversation is None
                    if turn and request.conversation:
                        assert cached > answer.usage["prompt_tokens"] // 3
            for m in messages:
                m += [
                    {"role": "assistant", "content": "Film 5"},
                    {"role": "user", "content": f"and what of Film {turn}?"},
                ]
        figures = engine.metrics
    limit = options.get("cache_bytes", 1 << 30)
    assert figures["conversation_bytes"] <= limit
    assert (figures["conversations"] == 0) == (limit == 0)


def test_a_new_conversation_shares_what_another_has_read(recommender):
    request = TurnRequest(LONG, "rec", 4, max_new_tokens=6, conversation="a", repeat_named=True)
    longer = replace(request, messages=[*LONG, *LONGER], conversation="b")
    with Engine(recommender) as engine:
        first, second = (engine.submit(one).result(60) for one in (request, longer))
    assert first.usage["cached_tokens"] == 0
    assert second.usage["cached_tokens"] > 0.9 * first.usage["prompt_tokens"]
    assert_same(second, responded(recommender, longer))


def test_a_reply_streams_word_by_word(recommender):
    async def read(ticket):
        return [event async for event in ticket]

    request = TurnRequest(ASK, "rec", max_new_tokens=12)
    with Engine(recommender) as engine:
        ticket = engine.submit(request)
        events = list(ticket)
        assert [*ticket][-1] == events[-1]
        later = asyncio.run(read(ticket))
    assert isinstance(events[0], Ranked)
    assert isinstance(events[-1], Done)
    assert {type(event) for event in events[1:-1]} == {Text}
    answer = events[-1].answer
    for seen in (events, later):
        assert "".join(event.delta for event in seen[1:-1]) == answer.text
    assert events[0].items == answer.items
    assert answer.usage["completion_tokens"] <= 12
    assert answer.timings.keys() == {"queue_ms", "prefill_ms", "rank_ms", "write_ms", "total_ms"}


def test_an_event_loop_reads_while_the_reply_is_written(recommender):
    async def converse(engine):
        first = [engine.submit(TurnRequest(ASK, "rec", max_new_tokens=30)) for _ in range(3)]
        seen = [[event async for event in ticket] for ticket in first]
        return [events[-1].answer.text for events in seen]

    with Engine(recommender) as engine:
        texts = asyncio.run(converse(engine))
    assert len(set(texts)) == 1


def test_samples_depend_on_the_seed_alone(recommender):
    def tokens(ticket):
        ticket.result(60)
        written = [event for event in ticket._events if isinstance(event, Written)]
        return [token for event in written for token in event.tokens]

    request = TurnRequest(ASK, "chat", max_new_tokens=12, do_sample=True, temperature=30.0, seed=3)
    with Engine(recommender, max_wait=0.03) as engine:
        alone = tokens(engine.submit(request))
        tickets = [
            engine.submit(r)
            for r in (*mixed_requests()[:4], request, replace(request, seed=4), request)
        ]
        *_, first, other, second = map(tokens, tickets)
    assert first == second == alone
    assert other != alone


def test_unknown_items_are_told_and_harm_nobody(recommender):
    with Engine(recommender, max_wait=0.03) as engine:
        odd = engine.submit(
            TurnRequest(ASK, "rec", 3, exclude=["gone", "i1"], allow=["i1", "i2", "lost"])
        )
        nothing = engine.submit(TurnRequest(ASK, "rec", 3, allow=["lost"]))
        plain = engine.submit(TurnRequest(ASK, "rec", 3, repeat_named=True))
        answer = odd.result(60)
        assert answer.unknown_items == ["gone", "lost"]
        assert [item for item, _, _ in answer.items] == ["i2"]
        assert (nothing.result(60).mode, nothing.result().items) == ("chat", [])
        assert plain.result(60).unknown_items == []
        assert "i3" in engine.submit(TurnRequest(ASK, "rec", 3)).result(60).already_named
    assert len(plain.result().items) == 3


def test_named_items_come_again_only_if_asked_for(recommender):
    with Engine(recommender) as engine:
        once = engine.submit(TurnRequest(ASK, "rec", 8)).result(60)
        again = engine.submit(TurnRequest(ASK, "rec", 8, repeat_named=True)).result(60)
    assert once.already_named == ["i3"]
    assert {i for i, _, _ in once.items} == {item.item_id for item in ITEMS} - {"i3"}
    assert (again.already_named, len(again.items)) == ([], 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [ASK, ASK]}, "one conversation"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "a role of"),
        ({"mode": "sing"}, "mode must be one of"),
        ({"num_items": 60}, "at most num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"deadline": -1.0}, "deadline must be above 0"),
        ({"exclude": "i1"}, "exclude must be a collection"),
    ],
)
def test_bad_requests_are_refused_before_they_are_queued(recommender, engine, change, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(TurnRequest(ASK), **change))
    assert engine.metrics["queue_length"] == 0


@pytest.fixture(scope="module")
def engine(recommender):
    with Engine(recommender) as engine:
        yield engine


class Gate:
    """Holds the model's forward passes until it is opened."""

    def __init__(self, model):
        self.open, self.reached = threading.Event(), threading.Event()
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self.wait)

    def wait(self, module, inputs):
        self.reached.set()
        self.open.wait(30)


@pytest.fixture
def gate(recommender):
    gate = Gate(recommender.bundle.model)
    yield gate
    gate.open.set()
    gate.handle.remove()


def test_a_full_queue_is_busy_and_recovers(recommender, gate):
    with Engine(recommender, max_queue=2, max_wait=0.0) as engine:
        first = engine.submit(TurnRequest(ASK, max_new_tokens=2))
        assert gate.reached.wait(30)
        waiting = [engine.submit(TurnRequest(ASK, max_new_tokens=2)) for _ in range(2)]
        with pytest.raises(Busy, match="queue of 2 requests is full"):
            engine.submit(TurnRequest(ASK))
        waiting[0].cancel()  # gives its place back
        waiting.append(engine.submit(TurnRequest(ASK, max_new_tokens=2)))
        gate.open.set()
        assert first.result(60).text == waiting[1].result(60).text == waiting[2].result(60).text
        with pytest.raises(Cancelled):
            waiting[0].result(60)
        assert engine.metrics["busy"] == engine.metrics["cancelled"] == 1


def test_a_deadline_ends_a_request_that_waits(recommender, gate):
    with Engine(recommender, max_wait=0.0) as engine:
        first = engine.submit(TurnRequest(ASK, max_new_tokens=2))
        assert gate.reached.wait(30)
        late = engine.submit(TurnRequest(ASK, deadline=0.01))
        time.sleep(0.02)
        gate.open.set()
        with pytest.raises(TimeoutError, match=r"deadline of 0\.01"):
            late.result(60)
        first.result(60)
        assert engine.metrics["late"] == 1


@pytest.mark.parametrize(
    ("reason", "counter"),
    [(None, "cancelled"), (TimeoutError("the engine is busy"), "late")],
    ids=["gone", "overdue"],
)
def test_turns_are_counted_by_why_they_were_cancelled(recommender, reason, counter):
    """One whose reply is being written, and one that waits. The first reason counts."""
    with Engine(recommender, max_running=1, max_wait=0.0) as engine:
        tickets = [engine.submit(TurnRequest(LONG, "rec", max_new_tokens=380))]
        next(iter(tickets[0]))
        tickets.append(engine.submit(TurnRequest(ASK)))
        for ticket in tickets:
            ticket.cancel(reason)
            ticket.cancel(None if reason else TimeoutError("the engine is busy"))
            with pytest.raises(type(reason or Cancelled())):
                ticket.result(60)
    counts = {name: engine.metrics[name] for name in ("answered", "cancelled", "late", "failed")}
    assert counts == {"answered": 0, "cancelled": 0, "late": 0, "failed": 0} | {counter: 2}


def test_a_deadline_ends_a_reply_that_is_written(recommender):
    with Engine(recommender) as engine:
        ticket = engine.submit(TurnRequest(LONG, "rec", max_new_tokens=380, deadline=0.15))
        with pytest.raises(TimeoutError, match="deadline"):
            ticket.result(60)
        assert engine.metrics["late"] == 1
        assert engine.submit(TurnRequest(ASK, max_new_tokens=3)).result(60)


def test_a_cancelled_reply_ends_and_the_others_go_on(recommender):
    requests = [TurnRequest(m, "rec", 3, max_new_tokens=40) for m in (ASK, LONGER, LONG)]
    with Engine(recommender, max_wait=0.03) as engine:
        tickets = [engine.submit(request) for request in requests]
        next(iter(tickets[1]))
        tickets[1].cancel()
        assert isinstance([*tickets[1]][-1], Failed)
        for ticket, request in ((tickets[0], requests[0]), (tickets[2], requests[2])):
            assert_same(
                ticket.result(60), responded(recommender, replace(request, repeat_named=False))
            )


def test_closing_ends_what_waits(recommender, gate):
    engine = Engine(recommender, max_wait=0.0)
    tickets = [engine.submit(TurnRequest(ASK)) for _ in range(2)]
    assert gate.reached.wait(30)
    threading.Timer(0.05, gate.open.set).start()
    engine.close()
    for ticket in tickets:
        with pytest.raises(Cancelled):
            ticket.result(60)
    with pytest.raises(RuntimeError, match="is closed"):
        engine.submit(TurnRequest(ASK))
    engine.close()


def test_a_request_that_fails_harms_no_other(recommender, monkeypatch):
    prefix = turn_module.reply_prefix

    def fails(bundle, item_ids):
        if item_ids[:1] == ["i6"]:
            raise RuntimeError("no prefix, say")
        return prefix(bundle, item_ids)

    monkeypatch.setattr(turn_module, "reply_prefix", fails)
    requests = [
        TurnRequest(ASK, "rec", 1, allow=[i], repeat_named=True) for i in ("i5", "i6", "i7")
    ]
    with Engine(recommender, max_wait=0.03) as engine:
        tickets = [engine.submit(request) for request in requests]
        with pytest.raises(RuntimeError, match="say"):
            tickets[1].result(60)
        for ticket, item in ((tickets[0], "i5"), (tickets[2], "i7")):
            assert [i for i, _, _ in ticket.result(60).items] == [item]
        assert engine.metrics["failed"] == 1


def test_a_failed_step_leaves_an_engine_that_answers(recommender):
    calls = []

    def fails(module, inputs):
        calls.append(inputs)
        if len(calls) == 8:
            raise RuntimeError("out of memory, say")

    handle = recommender.bundle.model.get_decoder().layers[-1].register_forward_pre_hook(fails)
    request = TurnRequest(ASK, "rec", max_new_tokens=20, repeat_named=True)
    try:
        with Engine(recommender) as engine:
            with pytest.raises(RuntimeError, match="say"):
                engine.submit(request).result(60)
            assert_same(engine.submit(request).result(60), responded(recommender, request))
    finally:
        handle.remove()


def test_a_swap_changes_new_requests_only(recommender, gate):
    other = recommender.with_catalogue(remove=["i5"])
    request = TurnRequest(ASK, "rec", 8, max_new_tokens=4, repeat_named=True)
    with Engine(recommender, max_wait=0.0) as engine:
        first = engine.submit(request)
        assert gate.reached.wait(30)
        second = engine.submit(request)
        engine.swap(other, "1")
        third = engine.submit(request)
        gate.open.set()
        answers = [ticket.result(60) for ticket in (first, second, third)]
        assert engine.catalogue_version == "1"
    assert [answer.catalogue_version for answer in answers] == ["0", "0", "1"]
    for answer, of in zip(answers, (recommender, recommender, other), strict=True):
        assert_same(answer, responded(of, request))


def test_replies_of_two_catalogues_share_their_steps(recommender):
    """Also where the items' tokens are as many as ever: each row has its own constraint."""
    other = recommender.with_catalogue(remove=["i0", "i1", "i2", "i4"])
    request = TurnRequest(ASK, "rec", 4, max_new_tokens=30, repeat_named=True)
    with Engine(recommender, max_wait=0.0) as engine:
        first = engine.submit(request)
        next(iter(first))
        engine.swap(other, "1")
        second = engine.submit(request)
        assert_same(first.result(60), responded(recommender, request))
        assert_same(second.result(60), responded(other, request))


@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_a_model_without_a_tree_answers_one_at_a_time(recommender, monkeypatch):
    from crs_fast.crs import turn as turn_module
    from crs_fast.decode import Capability
    from crs_fast.serve import worker as worker_module

    requests = [
        TurnRequest(m, "rec", 3, max_new_tokens=5, repeat_named=True) for m in (ASK, LONGER)
    ]
    expected = [responded(recommender, request) for request in requests]
    for module in (worker_module, turn_module):
        monkeypatch.setattr(module, "capability", lambda model: Capability(None, "say"))
    with pytest.warns(UserWarning, match=r"one at a time \(say\)"):
        engine = Engine(recommender)
    with engine:
        for request, answer in zip(requests, expected, strict=True):
            ticket = engine.submit(request)
            assert_same(ticket.result(60), answer)
            assert [type(event) for event in ticket] == [Ranked, Text, Done]


def test_the_engine_leaves_a_dialogues_own_cache_alone(recommender):
    """A prompt that lends its buffers to a reply is as it was."""
    cache = TurnCache()
    common = dict(mode="rec", num_items=3, max_new_tokens=9)
    recommender.respond([ASK, LONGER, LONG], cache=cache, **common)
    more = [[*m, {"role": "assistant", "content": "Film 1"}, *ASK] for m in (ASK, LONGER, LONG)]
    kept = recommender.respond(more, cache=cache, **common)
    for one, fresh in zip(kept, recommender.respond(more, **common), strict=True):
        assert [i for i, _, _ in one.items] == [i for i, _, _ in fresh.items]
        assert one.text == fresh.text


@pytest.mark.parametrize("options", [{"max_queue": 0}, {"max_wait": -1.0}, {"cache_bytes": -1}])
def test_bad_options(recommender, options):
    with pytest.raises(ValueError, match=f"Engine: {next(iter(options))} must be at least"):
        Engine(recommender, **options)


def test_nothing_is_kept_of_a_graph(recommender):
    """The engine's thread computes no gradients."""
    with Engine(recommender) as engine:
        answer = engine.submit(TurnRequest(ASK, "rec", conversation="c")).result(60)
        kept = engine._conversations._kept["c"]
    assert answer.items
    assert not any(s.requires_grad for states in kept.layers for s in states or ())
    assert torch.is_grad_enabled()
