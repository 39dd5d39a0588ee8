"""What `Engine.submit` returns: the events of one request, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from .requests import Cancelled, Done, Event, Failed, TurnAnswer, TurnRequest


class Ticket:
    """The events of one request, in order: `Ranked` once, `Text` many times, then `Done`; or
    `Failed` at any time, after which nothing comes.

        for event in ticket: ...          # in a thread
        async for event in ticket: ...    # in an event loop
        answer = ticket.result()          # waits for the end

    All of these can be used together and more than once: each sees every event.
    """

    def __init__(self, request: TurnRequest) -> None:
        self.request = request
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._is_cancelled = False

    @property
    def is_done(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], Done | Failed)

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> None:
        """Stop the request. Its last event is `Failed(Cancelled)`, unless it has ended already."""
        self._is_cancelled = True
        self.put(Failed(Cancelled("the request was cancelled")))

    def result(self, timeout: float | None = None) -> TurnAnswer:
        """Wait for the end.

        Raises:
            TimeoutError: not answered within `timeout` seconds, or within the request's deadline.
            Exception: what the request failed with.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout):
                raise TimeoutError(f"Ticket.result: no answer within {timeout} seconds")
        last = self._events[-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Done)
        return last.answer

    def put(self, event: Event) -> None:
        """Called by the engine. Events after the last one are dropped."""
        with self._changed:
            if self.is_done:
                return
            self._events.append(event)
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            wake()

    def __iter__(self) -> Iterator[Event]:
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=at: len(self._events) > seen)  # type: ignore[misc]
            event = self._events[at]
            at += 1
            yield event
            if isinstance(event, Done | Failed):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        at = 0
        while True:
            await self._has_more_than(at)
            event = self._events[at]
            at += 1
            yield event
            if isinstance(event, Done | Failed):
                return

    async def _has_more_than(self, seen: int) -> None:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(arrived.set)

        with self._changed:
            if len(self._events) > seen:
                return
            self._wakers.append(wake)
        await arrived.wait()
