"""What `Engine.submit` returns: the events of one request, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from crs_fast.crs.reply_text import ReplyText

from .requests import Cancelled, Done, Event, Failed, Text, TurnAnswer, TurnRequest

# Makes text of a reply's tokens, from the first one on.
MakeText = Callable[[], ReplyText]


class Written(NamedTuple):
    """More tokens of the reply. Whoever reads the events makes text of them, in its own thread."""

    tokens: list[int]


class Ticket:
    """The events of one request, in order: `Ranked` once, `Text` many times, then `Done`; or
    `Failed` at any time, after which nothing comes.

        for event in ticket: ...          # in a thread
        async for event in ticket: ...    # in an event loop
        answer = ticket.result()          # waits for the end

    All of these can be used together and more than once: each sees the whole reply.
    """

    def __init__(self, request: TurnRequest, make_text: MakeText) -> None:
        self.request = request
        self._make_text = make_text
        self._events: list[Event | Written] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        # Why it was cancelled.
        self.cancellation: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether the last event is there."""
        return bool(self._events) and isinstance(self._events[-1], Done | Failed)

    @property
    def is_cancelled(self) -> bool:
        return self.cancellation is not None

    def cancel(self, reason: Exception | None = None) -> None:
        """Stop the request. Its last event is `Failed(reason)`, by default `Cancelled`, unless it
        has ended already. The first reason counts."""
        if self.cancellation is None:
            self.cancellation = reason or Cancelled("the request was cancelled")
        self.put(Failed(self.cancellation))

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

    def put(self, event: Event | Written) -> None:
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
        reader = _Reader(self._make_text())
        while not reader.is_done:
            with self._changed:
                self._changed.wait_for(lambda: len(self._events) > reader.seen)
            yield from reader.read(self._events)

    async def __aiter__(self) -> AsyncIterator[Event]:
        reader = _Reader(self._make_text())
        while not reader.is_done:
            await self._has_more_than(reader.seen)
            for event in reader.read(self._events):
                yield event

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


class _Reader:
    """One reader of a ticket's events.

    seen: events that it has read
    """

    def __init__(self, text: ReplyText) -> None:
        self.seen, self.is_done = 0, False
        self._text, self._tokens = text, list[int]()

    def read(self, events: list[Event | Written]) -> list[Event]:
        """What is new, with the tokens of all new words together as one `Text`."""
        new, self.seen = events[self.seen :], len(events)
        self._tokens += [t for event in new if isinstance(event, Written) for t in event.tokens]
        told = [event for event in new if not isinstance(event, Written)]
        last = told[-1] if told and isinstance(told[-1], Done | Failed) else None
        self.is_done = last is not None
        first = [event for event in told if event is not last]
        if isinstance(last, Done):
            # The rest of the text; all of it where no tokens came.
            text = self._text.finish(self._tokens) if self._tokens else last.answer.text
        else:
            text = self._text.push(self._tokens)
        return [*first, *([Text(text)] if text else []), *([] if last is None else [last])]
