"""A turn on its way through the engine."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from crs_fast.crs.answer import (
    Ranking,
    Response,
    TurnOptions,
    context_tokens,
    reply_prefix,
    room_behind,
)
from crs_fast.crs.control_tokens import CHAT, REC, likelier_mode
from crs_fast.crs.conversation import as_batch, shown_items
from crs_fast.crs.exposure import ExposedList, Exposure, named_items
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.reply import Reply
from crs_fast.crs.reply_text import ReplyText
from crs_fast.crs.sampling import Sampling
from crs_fast.decode import Prompt

from .requests import Done, Failed, Ranked, TurnAnswer, TurnRequest
from .ticket import Ticket, Written


class Catalogue(NamedTuple):
    """What a turn is answered from. It stays the same until the turn has ended."""

    recommender: Recommender
    version: str


class Turn:
    """One request, checked and as tokens. Made in the thread of the caller.

    context: what the model reads
    exposed: which items may be shown
    cached_tokens: of the context, that the model did not read again
    beginning: the part of the context that has been read in chunks so far
    ranking: its mode and items, once the engine knows them

    Raises:
        ValueError: the request can't be answered.
    """

    def __init__(self, request: TurnRequest, catalogue: Catalogue) -> None:
        recommender, bundle = catalogue.recommender, catalogue.recommender.bundle
        self.request, self.catalogue = request, catalogue
        options = TurnOptions(
            mode=request.mode,
            num_items=request.num_items,
            num_beams=request.num_beams,
            max_new_tokens=request.max_new_tokens,
        )
        options.check("TurnRequest", recommender.titles)
        _check(request)
        if not as_batch(request.messages, "TurnRequest")[1]:
            raise ValueError("TurnRequest: messages must be one conversation (got a batch)")
        self._turns = turns = recommender.turns(request.messages)
        wanted = Exposure(
            request.exclude,
            request.allow,
            request.groups,
            request.max_per_group,
            request.repeat_named,
        )
        self.exposure, self.unknown = wanted.known(recommender.groups)
        self._named = named_items(turns, shown_items(request.messages))
        self.already_named = (
            [] if request.repeat_named else [i for i in self._named if i in recommender.titles]
        )
        self.start_over()
        self.context = context_tokens(bundle, turns, options)
        self.room = room_behind(bundle, options)
        self.sampling = Sampling(request.do_sample, request.temperature, request.top_p)
        self.builder = bundle.builder.naming(self.exposed.may_name)
        self.ticket = Ticket(request, lambda: ReplyText(self.builder, recommender.titles))
        self.ranking = Ranking(CHAT, [], 0.0)
        self.cached_tokens = 0
        self.beginning: Prompt | None = None
        self.reply: Reply | None = None
        self._told = 0  # tokens of the reply
        self.arrived = time.monotonic()
        self.timings: dict[str, float] = {}
        self._stage_began = self.arrived

    def start_over(self) -> None:
        """Forget what was found so far."""
        groups = self.catalogue.recommender.groups
        self.exposed = ExposedList(
            self.exposure, groups, self._named, self.request.num_items, self._turns
        )

    @property
    def is_cancelled(self) -> bool:
        return self.ticket.is_cancelled

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline
        return deadline is not None and now - self.arrived > deadline

    def ended(self, stage: str) -> None:
        """Note how long a stage took, which ends now."""
        now = time.monotonic()
        self.timings[f"{stage}_ms"] = 1000 * (now - self._stage_began)
        self._stage_began = now

    def prefers_items(self, rec_probability: float) -> bool:
        """Whether the request forces mode "rec", or the model prefers it."""
        self._rec_probability = rec_probability
        return (self.request.mode or likelier_mode(rec_probability)) == REC

    def take_items(self) -> None:
        """Take the items that were found. Without any, the mode is "chat"."""
        titles = self.catalogue.recommender.titles
        items = [(i, titles[i], score) for i, score in self.exposed.items]
        self.ranking = Ranking(REC if items else CHAT, items, self._rec_probability)

    def prefix(self) -> list[int]:
        """The tokens with which the reply begins."""
        first = [item_id for item_id, _, _ in self.ranking.items[:1]]
        return reply_prefix(self.catalogue.recommender.bundle, first)

    def begin_reply(self, device: torch.device) -> Reply:
        """The reply, which is still to be written."""
        generator = None
        if self.request.do_sample and self.request.seed is not None:
            generator = torch.Generator(device).manual_seed(self.request.seed)
        self.reply = Reply(
            self.catalogue.recommender.bundle,
            [*self.context, *self.prefix()],
            self.request.max_new_tokens,
            self.sampling,
            generator,
            self.exposed.reply_filter,
        )
        return self.reply

    def tell_items(self) -> None:
        """Tell the caller the mode and the items."""
        event = Ranked(
            self.ranking.mode,
            self.ranking.items,
            self.ranking.rec_probability,
            self.unknown,
            self.already_named,
            self.catalogue.version,
        )
        self.ticket.put(event)

    def tell_words(self) -> None:
        """Tell the caller what is new in the reply."""
        assert self.reply is not None
        new = self.reply.tokens[self._told :]
        if new:
            self._told += len(new)
            self.ticket.put(Written(new))

    def finish(self, response: Response, completion_tokens: int) -> TurnAnswer:
        """Tell the caller the answer."""
        self.ended("write")
        self.timings["total_ms"] = 1000 * (time.monotonic() - self.arrived)
        answer = TurnAnswer(
            response.mode,
            response.items,
            response.text,
            response.rec_probability,
            response.named,
            response.invalid_items,
            self.unknown,
            self.already_named,
            self.catalogue.version,
            self.timings,
            {
                "prompt_tokens": len(self.context),
                "cached_tokens": self.cached_tokens,
                "completion_tokens": completion_tokens,
            },
        )
        self.ticket.put(Done(answer))
        return answer

    def fail(self, error: Exception) -> None:
        """Tell the caller that there will be no answer."""
        self.ticket.put(Failed(error))


def _check(request: TurnRequest) -> None:
    if request.max_new_tokens < 1:
        raise ValueError(
            f"TurnRequest: max_new_tokens must be at least 1 (got {request.max_new_tokens})"
        )
    if request.deadline is not None and not request.deadline > 0:
        raise ValueError(f"TurnRequest: deadline must be above 0 (got {request.deadline})")
