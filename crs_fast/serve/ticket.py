"""What `Engine.submit` returns: the events of one request, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from .requests import Cancelled, Done, Event, Failed, Text, TurnAnswer, TurnRequest

# What is written of a reply, as text.
Decode = Callable[[Sequence[int]], str]


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

    def __init__(self, request: TurnRequest, decode: Decode) -> None:
        self.request = request
        self._decode = decode
        self._events: list[Event | Written] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._is_cancelled = False

    @property
    def is_done(self) -> bool:
        """Whether the last event is there."""
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
        reader = _Reader(self._decode)
        while not reader.is_done:
            with self._changed:
                self._changed.wait_for(lambda: len(self._events) > reader.seen)
            yield from reader.read(self._events)

    async def __aiter__(self) -> AsyncIterator[Event]:
        reader = _Reader(self._decode)
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

    def __init__(self, decode: Decode) -> None:
        self.seen, self.is_done = 0, False
        self._decode, self._tokens, self._text = decode, list[int](), ""

    def read(self, events: list[Event | Written]) -> list[Event]:
        """What is new, with the tokens of all new words together as one `Text`."""
        new, self.seen = events[self.seen :], len(events)
        out: list[Event] = []
        for event in new:
            if isinstance(event, Written):
                self._tokens += event.tokens
            elif isinstance(event, Done):
                out += self._more(event.answer.text)
                out.append(event)
                self.is_done = True
            else:
                out.append(event)
                self.is_done = isinstance(event, Failed)
        if self._tokens and not self.is_done:
            # A character whose bytes are not all there yet is shown as this one.
            out += self._more(self._decode(self._tokens).rstrip("\ufffd"))
        return out

    def _more(self, text: str) -> list[Event]:
        """What `text` has more than was told already."""
        if len(text) <= len(self._text) or not text.startswith(self._text):
            return []
        delta, self._text = text[len(self._text) :], text
        return [Text(delta)]
