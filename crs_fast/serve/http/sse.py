"""A turn as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..requests import Done, Ranked, Text
from .calls import TurnCall
from .problems import Problem, internal, logger

Writer = Callable[[AsyncIterator[Any]], AsyncIterator[str]]


async def stream(request: Request, turn: TurnCall, write: Writer) -> Response:
    """The turn's events as `write` puts them into text. A turn that fails before its first event
    raises a `Problem`, so that the client sees its status; a later failure is the event `error`."""
    stack = AsyncExitStack()
    events = await stack.enter_async_context(turn.events(request))
    try:
        first = await anext(events)
    except BaseException:
        await stack.aclose()
        raise

    async def all_events() -> AsyncIterator[Any]:
        yield first
        async for event in events:
            yield event

    async def body() -> AsyncIterator[str]:
        async with stack:
            try:
                async for text in write(all_events()):
                    yield text
            except Problem as problem:
                yield named("error", problem.body())
            except Exception:
                logger.exception("a stream failed")
                yield named("error", internal().body())

    # Proxies like nginx would otherwise collect the events.
    return StreamingResponse(
        body(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def respond_events(turn: TurnCall, events: AsyncIterator[Any]) -> AsyncIterator[str]:
    """The events of `/v1/respond`: `ranked`, `text` for each piece, `done` with the answer."""
    async for event in events:
        if isinstance(event, Ranked):
            yield named("ranked", turn.ranking(event))
        elif isinstance(event, Text):
            yield named("text", {"delta": event.delta})
        elif isinstance(event, Done):
            yield named("done", turn.answer(event.answer).model_dump())


def named(name: str, content: Any) -> str:
    """One event. JSON without line breaks, so that one line holds it."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
