"""A server in a thread, and an engine that answers what a test tells it."""

import asyncio
import contextlib
import itertools
import threading
import time
from types import SimpleNamespace

import uvicorn

from crs_fast.serve.requests import Cancelled, Done, Failed, Ranked, Text, TurnAnswer

ITEMS = [("i1", "Film 1 (1991)", -1.0), ("i2", "Film 2 (1992)", -2.5)]
TIMINGS = {"queue_ms": 1, "prefill_ms": 20, "rank_ms": 30, "write_ms": 40, "total_ms": 91}
USAGE = {"prompt_tokens": 12, "cached_tokens": 5, "completion_tokens": 3}
ANSWER = TurnAnswer(
    "rec", ITEMS, "See Film 1 (1991).", 0.75, ["i1"], 0, ["gone"], ["i3"], "v7", TIMINGS, USAGE
)
EVENTS = (
    Ranked("rec", ITEMS, 0.75, ["gone"], ["i3"], "v7"),
    Text("See Film 1"),
    Text(" (1991)."),
    Done(ANSWER),
)


class ScriptedTicket:
    """Events as a test puts them, for event loops."""

    def __init__(self, request, events):
        self.request, self.events, self.is_cancelled = request, list(events), False

    def put(self, event):
        self.events.append(event)

    def cancel(self, reason=None):
        self.is_cancelled = True
        self.put(Failed(reason or Cancelled("the request was cancelled")))

    async def __aiter__(self):
        for number in itertools.count():
            while len(self.events) <= number:
                await asyncio.sleep(0.005)
            yield self.events[number]
            if isinstance(self.events[number], Done | Failed):
                return


class ScriptedEngine:
    """Answers each request with the same events, or raises the same error. Without events its
    tickets stay open until they are cancelled."""

    max_queue = 4

    def __init__(self, events=EVENTS, error=None):
        self.events, self.error = events, error
        self.recommender = SimpleNamespace(
            titles={f"i{n}": f"Film {n} ({1990 + n})" for n in range(4)},
            turns=lambda messages: [SimpleNamespace(item_ids=lambda: ["i2"])],
        )
        self.metrics = {"queue_length": 0}
        self.tickets = []
        self.is_closed = False

    @property
    def request(self):
        return self.tickets[-1].request

    def submit(self, request):
        if self.error is not None:
            raise self.error
        self.tickets.append(ScriptedTicket(request, self.events))
        return self.tickets[-1]

    def close(self):
        self.is_closed = True


def scripted_store(titles=("Film 0", "Film 1", "Film 2"), groups=("comedy", "drama")):
    """What the page asks of a catalogue."""
    items = [SimpleNamespace(title=title) for title in titles]
    recommender = SimpleNamespace(
        bundle=SimpleNamespace(items=items), groups=SimpleNamespace(names=list(groups))
    )
    return SimpleNamespace(
        current=SimpleNamespace(version="v7", recommender=recommender), versions=["v7"]
    )


@contextlib.contextmanager
def running(app):
    """The address of a server for the application, on a free port of this machine."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition, seconds=30):
    """Wait until the condition holds; an AssertionError if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
