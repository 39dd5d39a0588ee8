"""From a request in JSON to the engine's ticket, and from its events to answers in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from ..requests import (
    Busy,
    Cancelled,
    Done,
    Event,
    Failed,
    Ranked,
    RankedItem,
    TurnAnswer,
    TurnRequest,
)
from .limits import Limits
from .problems import Problem, internal, logger
from .schemas import Item, Message, RespondAnswer, RespondRequest, Timings, Usage

if TYPE_CHECKING:
    from ..engine import Engine
    from ..ticket import Ticket
    from .prometheus import Meters


# The engine looks at deadlines between two forward passes. If it has not said so many seconds after
# one that a turn is late, the client is told all the same.
_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes share. `name` is the model's, as OpenAI's clients call it."""

    engine: Engine
    limits: Limits
    meters: Meters
    name: str


class TurnCall:
    """One HTTP request for a turn, from its body to its answer.

    Raises:
        Problem: the request is past a limit, or holds no message that the model reads.
    """

    ticket: Ticket
    _has_ended = False

    def __init__(self, server: Server, body: RespondRequest, warnings: Iterable[str] = ()) -> None:
        server.limits.check(body)
        read = [message for message in body.messages if message.role in ("user", "assistant")]
        if not read:
            raise Problem(
                422,
                "messages must hold at least one message of role user or assistant (got none)",
                code="invalid",
                field="messages",
            )
        self.server, self.body = server, body
        self.warnings = [*warnings, *_unread(body.messages)]
        self.seconds = body.timeout or server.limits.max_seconds
        self.request = TurnRequest(
            messages=[message.model_dump(exclude_defaults=True) for message in read],
            mode=body.mode,
            num_items=body.num_items,
            exclude=body.exclude,
            allow=body.allow,
            groups=body.groups,
            max_per_group=body.max_per_group,
            num_beams=body.beams,
            max_new_tokens=body.max_new_tokens,
            do_sample=body.do_sample,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            conversation=body.conversation,
            repeat_named=body.repeat_named,
            deadline=self.seconds,
        )

    async def start(self) -> None:
        """Hand the turn to the engine.

        Raises:
            Problem: 503 if the queue is full or the server ends, 422 if the engine refuses the
                request.
        """
        try:
            # In a thread: finding titles in long messages would hold up every other request.
            await asyncio.to_thread(self._submit)
        except Busy as error:
            self.server.meters.failed("busy")
            raise Problem(503, str(error), code="busy", retry_after=1) from error
        except ValueError as error:
            self.server.meters.failed("invalid")
            raise Problem(422, str(error), code="invalid") from error
        except RuntimeError as error:
            self.server.meters.failed("cancelled")
            raise Problem(503, "the server is ending", code="ending", retry_after=5) from error

    def _submit(self) -> None:
        recommender = self.server.engine.recommender
        self.titles = recommender.titles
        self.named_before: set[str] = set()
        if self.body.repeat_named:  # otherwise no item is recommended again
            turns = recommender.turns(self.request.messages)
            self.named_before.update(*(turn.item_ids() for turn in turns))
            self.named_before.update(*(message.shown for message in self.body.messages))
        self.ticket = self.server.engine.submit(self.request)

    @asynccontextmanager
    async def events(self, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        """The turn's events: `Ranked`, `Text`s, `Done`. If the client goes away the turn is
        cancelled.

        Raises:
            Problem: the turn failed; raised in place of the event `Failed`.
        """
        watch = asyncio.create_task(self._cancel_when_gone(request))
        overdue = asyncio.get_running_loop().call_later(
            self.seconds + _GRACE, self.ticket.cancel, TimeoutError("the engine is busy")
        )
        try:
            yield self._checked()
        finally:
            watch.cancel()
            overdue.cancel()
            if not self._has_ended:
                self.ticket.cancel()
                self.server.meters.failed("cancelled")

    async def finish(self, request: Request) -> TurnAnswer:
        """The answer, when all of it is there.

        Raises:
            Problem: the turn failed.
        """
        async with self.events(request) as events:
            answer = [event.answer async for event in events if isinstance(event, Done)]
        return answer[0]

    async def _cancel_when_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.ticket.cancel()

    async def _checked(self) -> AsyncIterator[Event]:
        async for event in self.ticket:
            self._has_ended = isinstance(event, Done | Failed)
            if isinstance(event, Failed):
                raise self._problem(event.error)
            if isinstance(event, Done):
                self.server.meters.answered(event.answer)
            yield event

    def _problem(self, error: Exception) -> Problem:
        failed = self.server.meters.failed
        if isinstance(error, TimeoutError):
            failed("timeout")
            return Problem(
                504, f"the turn did not end within {self.seconds:g} seconds", code="timeout"
            )
        if isinstance(error, Cancelled):
            failed("cancelled")
            return Problem(503, "the turn was cancelled", code="cancelled")
        failed("internal")
        logger.error("a turn failed", exc_info=error)
        return internal()

    def ranking(self, event: Ranked) -> dict[str, Any]:
        """What is known before the reply: intent, items, what was left out."""
        return {
            "mode": event.mode,
            "items": [item.model_dump() for item in self._items(event.items)],
            "rec_probability": event.rec_probability,
            "already_named": event.already_named,
            "unknown_items": event.unknown_items,
            "titles": self._titles([*event.already_named, *self.body.exclude]),
            "catalogue_version": event.catalogue_version,
        }

    def answer(self, answer: TurnAnswer) -> RespondAnswer:
        """The engine's answer as JSON has it."""
        mentioned = [*answer.named, *answer.already_named, *self.body.exclude]
        return RespondAnswer(
            mode=answer.mode,
            items=self._items(answer.items),
            text=answer.text,
            rec_probability=answer.rec_probability,
            named=answer.named,
            already_named=answer.already_named,
            unknown_items=answer.unknown_items,
            invalid_items=answer.invalid_items,
            titles=self._titles(mentioned),
            catalogue_version=answer.catalogue_version,
            timings=Timings(**answer.timings),
            usage=Usage(**answer.usage),
            warnings=self.warnings,
        )

    def _items(self, items: Iterable[RankedItem]) -> list[Item]:
        return [
            Item(id=item_id, title=title, score=score, named_before=item_id in self.named_before)
            for item_id, title, score in items
        ]

    def _titles(self, ids: Iterable[str]) -> dict[str, str]:
        return {item_id: self.titles[item_id] for item_id in ids if item_id in self.titles}


def _unread(messages: Iterable[Message]) -> list[str]:
    return [
        f"messages.{index}: a message of role {message.role} is not shown to the model, which has "
        "learned from users and assistants only"
        for index, message in enumerate(messages)
        if message.role in ("system", "developer")
    ]
