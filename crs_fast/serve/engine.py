"""The engine: one thread that owns the model and answers the turns of many callers."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from crs_fast.crs.recommender import Recommender

from .conversations import Conversations
from .queue import next_group
from .requests import Busy, Cancelled, TurnRequest
from .statistics import Statistics
from .ticket import Ticket
from .turn import Catalogue, Turn
from .worker import Worker

# Turns that arrive while replies are written wait at most so many seconds for others.
_MOST_PATIENCE = 0.1


class Engine:
    """Answers turns with one model. Any thread may call any method.

        with Engine(Recommender.from_pretrained(directory)) as engine:
            ticket = engine.submit(TurnRequest(messages))
            for event in ticket: ...          # or `async for`, or ticket.result()

        loop: group = the waiting turns that fit into one forward pass
              prefill(group), rank(group)                    # joins the replies in progress
              or: one chunk of a long turn                   # which goes on waiting
              one token of every reply in progress           # replies that have ended leave

    Its answers are those of `Recommender.respond` one at a time. The model must not be changed
    while the engine lives.

    Args:
        recommender: model and catalogue.
        max_batch_tokens: the most tokens that one prefill reads, padding included.
        max_chunk: the most tokens that are read between two tokens of the replies in progress,
            padding included. A turn with more new tokens is read in chunks of so many; so is one
            that no prefill could hold.
        max_wait: seconds that a request may wait for others to share its forward passes. While
            replies are being written it waits as long as the last prefill and ranking took, if that
            is longer.
        max_queue: the most requests that wait; `submit` raises `Busy` for one more.
        max_running: the most replies that are written at a time.
        cache_bytes: memory for what the model has read of conversations, least recently used out.
        cuda_graphs: on a GPU, record the steps in which replies are written in CUDA graphs. Their
            answers have not been compared on a GPU yet.
        version: of the recommender's catalogue.
    """

    def __init__(
        self,
        recommender: Recommender,
        *,
        max_batch_tokens: int = 8192,
        max_chunk: int = 512,
        max_wait: float = 0.004,
        max_queue: int = 256,
        max_running: int = 64,
        cache_bytes: int = 1 << 30,
        cuda_graphs: bool = False,
        version: str = "0",
    ) -> None:
        for name, value in (
            ("max_batch_tokens", max_batch_tokens),
            ("max_chunk", max_chunk),
            ("max_queue", max_queue),
            ("max_running", max_running),
        ):
            if value < 1:
                raise ValueError(f"Engine: {name} must be at least 1 (got {value})")
        for name, amount in (("max_wait", max_wait), ("cache_bytes", cache_bytes)):
            if amount < 0:
                raise ValueError(f"Engine: {name} must be at least 0 (got {amount})")
        self.max_batch_tokens, self.max_wait = max_batch_tokens, max_wait
        self.max_chunk = min(max_chunk, max_batch_tokens)
        self.max_queue, self.max_running = max_queue, max_running
        self._catalogue = Catalogue(recommender.prepare(), version)
        self._statistics = Statistics()
        self._conversations = Conversations(cache_bytes)
        self._worker = Worker(
            recommender.bundle.model,
            self._conversations,
            self._statistics,
            self.max_chunk,
            cuda_graphs,
        )
        self._waiting: list[Turn] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="crs-fast engine", daemon=True)
        self._thread.start()

    @property
    def recommender(self) -> Recommender:
        """What the next request will be answered with."""
        return self._catalogue.recommender

    @property
    def catalogue_version(self) -> str:
        """The version of the catalogue that the next request will be answered from."""
        return self._catalogue.version

    @property
    def is_closed(self) -> bool:
        """Whether no requests are taken any more: it was closed, or its thread has failed."""
        return self._is_closed

    def swap(self, recommender: Recommender, version: str) -> None:
        """Answer from another catalogue from now on. Requests that were submitted before end on the
        catalogue that they began with.

        Raises:
            ValueError: `recommender` has another model.
        """
        if recommender.bundle.model is not self.recommender.bundle.model:
            raise ValueError("Engine.swap: recommender must have the engine's model (got another)")
        self._catalogue = Catalogue(recommender.prepare(), version)

    @property
    def metrics(self) -> dict[str, float]:
        """Figures by name: what waits and runs now, counts since the beginning, percentiles of the
        stages of the last turns in milliseconds."""
        return {
            "queue_length": len(self._waiting),
            "running": len(self._worker),
            "conversations": len(self._conversations),
            "conversation_bytes": self._conversations.nbytes,
            **self._statistics.figures(),
        }

    def submit(self, request: TurnRequest) -> Ticket:
        """Queue a request. The text is made tokens in the calling thread, which takes some
        milliseconds; nothing here waits for the model.

        Raises:
            Busy: the queue is full.
            ValueError: the request can't be answered.
            RuntimeError: the engine is closed.
        """
        self._refuse_if_full()
        turn = Turn(request, self._catalogue)
        with self._changed:
            self._refuse_if_full()
            self._waiting.append(turn)
            self._changed.notify()
        return turn.ticket

    def close(self) -> None:
        """Stop. Requests that are not answered yet fail with `Cancelled`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _refuse_if_full(self) -> None:
        if self._is_closed:
            raise RuntimeError("Engine.submit: the engine is closed")
        waiting = sum(not turn.is_cancelled for turn in self._waiting)
        if waiting >= self.max_queue:
            self._statistics.counts["busy"] += 1
            raise Busy(f"the engine's queue of {self.max_queue} requests is full")

    def _run(self) -> None:
        error: Exception = Cancelled("the engine was closed")
        try:
            while (group := self._next_group()) is not None:
                if group:
                    self._begin(group)
                self._worker.step()
        except Exception as problem:
            error = problem
            raise
        finally:
            with self._changed:
                self._is_closed = True
                waiting, self._waiting = self._waiting, []
            self._worker.fail_all(error)
            for turn in waiting:
                self._worker.fail(turn, error)

    def _begin(self, group: list[Turn]) -> None:
        if not self._worker.is_long(group[0], self._most_tokens()):
            self._worker.admit(group)
        elif self._worker.read_chunk(group[0]):
            with self._changed:
                self._waiting.insert(0, group[0])

    def _next_group(self) -> list[Turn] | None:
        """The turns to begin now; none if replies should go on first. None when the engine is
        closed. Waits while there is nothing to do."""
        with self._changed:
            while not self._is_closed:
                self._waiting = self._worker.drop(self._waiting)
                is_writing = len(self._worker) > 0
                seconds = self._seconds_to_wait(is_writing)
                if seconds is not None and seconds <= 0:
                    return self._take_group()
                if is_writing:
                    return []
                self._changed.wait(seconds)
            return None

    def _seconds_to_wait(self, is_writing: bool) -> float | None:
        """How long the turns that wait may wait for others; None for as long as anybody likes."""
        free = self.max_running - len(self._worker)
        if not self._waiting or free < 1:
            return None
        if len(self._waiting) >= free:
            return 0.0
        patience = self.max_wait
        if is_writing:
            patience = max(patience, min(self._worker.seconds_to_admit, _MOST_PATIENCE))
        oldest = min(turn.arrived for turn in self._waiting)
        return oldest + patience - time.monotonic()

    def _most_tokens(self) -> int:
        """The most tokens that may be read now, before the next step of the replies."""
        return self.max_chunk if len(self._worker) > 0 else self.max_batch_tokens

    def _take_group(self) -> list[Turn]:
        group = next_group(
            self._waiting,
            self._worker.unread,
            max_tokens=self._most_tokens(),
            max_turns=self.max_running - len(self._worker),
            seconds_per_token=self._worker.seconds_per_token,
        )
        taken = set(map(id, group))
        self._waiting = [turn for turn in self._waiting if id(turn) not in taken]
        return group
