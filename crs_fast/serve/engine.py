"""The engine: one thread that owns the model and answers the turns of many callers."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from crs_fast.crs.control_tokens import MODES
from crs_fast.crs.recommender import Recommender

from .requests import Busy, Cancelled, Done, Failed, Ranked, Text, TurnAnswer, TurnRequest
from .ticket import Ticket


@dataclass
class _Waiting:
    ticket: Ticket
    recommender: Recommender
    version: str
    arrived: float


class Engine:
    """Answers turns with one model. Any thread may call any method.

    Args:
        recommender: model and catalogue.
        max_batch_tokens: the most tokens that one forward pass reads, padding included.
        max_wait: seconds that a request may wait for others to share its forward passes.
        max_queue: the most requests that wait; `submit` raises `Busy` for one more.
        cache_bytes: memory for what the model has read of conversations, least recently used out.
        version: of the recommender's catalogue.
    """

    def __init__(
        self,
        recommender: Recommender,
        *,
        max_batch_tokens: int = 8192,
        max_wait: float = 0.004,
        max_queue: int = 256,
        cache_bytes: int = 1 << 30,
        version: str = "0",
    ) -> None:
        self.max_queue = max_queue
        self._catalogue = (recommender, version)
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="crs-fast engine", daemon=True)
        self._thread.start()

    @property
    def recommender(self) -> Recommender:
        """What the next request will be answered with."""
        return self._catalogue[0]

    @property
    def catalogue_version(self) -> str:
        return self._catalogue[1]

    def swap(self, recommender: Recommender, version: str) -> None:
        """Answer from another catalogue from now on. Requests that were submitted before end on the
        catalogue that they began with.

        Raises:
            ValueError: `recommender` has another model.
        """
        if recommender.bundle.model is not self.recommender.bundle.model:
            raise ValueError("Engine.swap: recommender must have the engine's model (got another)")
        self._catalogue = (recommender, version)

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers about what the engine does now and has done."""
        return {"queue_length": len(self._queue)}

    def submit(self, request: TurnRequest) -> Ticket:
        """Queue a request; returns at once.

        Raises:
            Busy: the queue is full.
            ValueError: the request can't be answered.
            RuntimeError: the engine is closed.
        """
        recommender, version = self._catalogue
        _check(request, recommender)
        ticket = Ticket(request)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("Engine.submit: the engine is closed")
            if len(self._queue) >= self.max_queue:
                raise Busy(f"the engine's queue of {self.max_queue} requests is full")
            self._queue.append(_Waiting(ticket, recommender, version, time.monotonic()))
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Stop. Requests that are not answered yet fail with `Cancelled`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        for waiting in self._queue:
            waiting.ticket.put(Failed(Cancelled("the engine was closed")))

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if self._is_closed:
                    return
                waiting = self._queue.popleft()
            if waiting.ticket.is_cancelled:
                continue
            try:
                _answer(waiting)
            except Exception as error:
                waiting.ticket.put(Failed(error))


def _answer(waiting: _Waiting) -> None:
    """Answer one request by itself."""
    ticket, recommender = waiting.ticket, waiting.recommender
    request, titles, began = ticket.request, recommender.titles, time.monotonic()
    deadline = request.deadline
    if deadline is not None and began - waiting.arrived > deadline:
        raise TimeoutError(f"no answer within the deadline of {deadline} seconds")
    ids = [*request.exclude, *(request.allow or ())]
    unknown = [i for i in dict.fromkeys(ids) if i not in titles]
    excluded = {i for i in request.exclude if i in titles}
    if request.allow is not None:
        excluded |= titles.keys() - set(request.allow)
    named: list[str] = []
    if not request.repeat_named:
        turns = recommender.turns(request.messages)
        mentioned = dict.fromkeys(i for turn in turns for i in turn.item_ids())
        named = [i for i in mentioned if i in titles]
        excluded |= set(named)
    turn = recommender.respond(
        request.messages,
        request.mode,
        request.num_items,
        sorted(excluded),
        num_beams=request.num_beams,
        max_new_tokens=request.max_new_tokens,
        do_sample=request.do_sample,
        temperature=request.temperature,
        top_p=request.top_p,
    )
    version = waiting.version
    ended = time.monotonic()
    timings = {
        "queue_ms": 1000 * (began - waiting.arrived),
        "prefill_ms": 0.0,
        "rank_ms": 0.0,
        "write_ms": 1000 * (ended - began),
        "total_ms": 1000 * (ended - waiting.arrived),
    }
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    answer = TurnAnswer(
        turn.mode, turn.items, turn.text, turn.rec_probability, turn.named, turn.invalid_items,
        unknown, named, version, timings, usage,
    )  # fmt: skip
    ticket.put(Ranked(turn.mode, turn.items, turn.rec_probability, unknown, named, version))
    ticket.put(Text(turn.text))
    ticket.put(Done(answer))


def _check(request: TurnRequest, recommender: Recommender) -> None:
    if not request.messages:
        raise ValueError("TurnRequest: messages must hold at least one message (got none)")
    if request.mode is not None and request.mode not in MODES:
        raise ValueError(f"TurnRequest: mode must be one of {MODES} (got {request.mode!r})")
    if not 1 <= request.num_items <= request.num_beams:
        raise ValueError(
            "TurnRequest: num_items must be at least 1 and at most num_beams "
            f"(got {request.num_items} and {request.num_beams})"
        )
    if request.groups:
        raise ValueError(
            "TurnRequest: groups must be names of the catalogue's groups, which has none "
            f"(got {list(request.groups)})"
        )
    recommender.turns(request.messages)  # refuses unknown roles and messages that are too long
