"""What the engine's thread does with the model: reads turns, ranks items, writes replies."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from crs_fast.crs.answer import Ranking, response_of
from crs_fast.crs.exposure import fill_lists
from crs_fast.crs.reply import ReplyBatch
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.decode import Prompt, TreeModel, capability, sliding_window, unwrapped
from crs_fast.decode.lm.kept_tokens import KeptTokens, resumed
from crs_fast.decode.lm.prompt import PaddedBatch

from .conversations import Conversations
from .requests import Cancelled
from .statistics import Statistics
from .turn import Turn


class Worker:
    """Turns in progress. Only one thread may use it.

    Each turn is read and its items are ranked together with the turns of its group; its reply is
    written together with the replies of all groups, a token of each per `step`.

    Args:
        model: of all recommenders whose turns come.
        conversations: what is kept between the turns of a conversation.
        statistics: is told what happens.
        max_chunk: tokens of a turn that are read in one forward pass; longer turns in several.
        cuda_graphs: record the steps in which replies are written, where that is possible.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        conversations: Conversations,
        statistics: Statistics,
        max_chunk: int,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.conversations, self.statistics = model, conversations, statistics
        self.max_chunk, self.cuda_graphs = max_chunk, cuda_graphs
        self.seconds_per_token = self.seconds_to_admit = 0.0
        self._running: list[Turn] = []
        plain = unwrapped(model)
        attention, reason, _ = capability(plain)
        self._lm = None if attention is None else TreeModel(plain, attention)
        self._window = sliding_window(plain)
        self._replies = self._no_replies()
        if self._lm is None:
            self._say_alone(reason)

    def _no_replies(self) -> ReplyBatch | None:
        return None if self._lm is None else ReplyBatch(self._lm, self.cuda_graphs)

    def __len__(self) -> int:
        """The number of replies that are being written."""
        return len(self._running)

    def unread(self, turn: Turn) -> int:
        """The most tokens of a turn that the model must still read."""
        if turn.beginning is not None:
            return len(turn.context) - turn.beginning.length
        known = self.conversations.find(turn.request.conversation, turn.context)
        return len(turn.context) - (0 if known is None else known[1])

    def is_long(self, turn: Turn, limit: int) -> bool:
        """Whether a turn, of more than `limit` tokens, must be read in chunks before it can be
        admitted."""
        return self._lm is not None and self.unread(turn) > limit and self._fit([turn])

    @torch.no_grad()
    def read_chunk(self, turn: Turn) -> bool:
        """Read the next tokens of a long turn. False if that failed, and the turn with it."""
        try:
            self._read_chunk(turn)
        except Exception as error:
            self.fail(turn, error)
            return False
        self.statistics.counts["chunks"] += 1
        return True

    @torch.no_grad()
    def admit(self, group: Sequence[Turn]) -> None:
        """Read the turns of a group, find their items, and begin their replies."""
        began = time.monotonic()
        try:
            self._admit(group)
        except Exception as error:  # whatever it is, it is one request's and harms no other's
            if len(group) == 1:
                self.fail(group[0], error)
                return
            for turn in group:
                turn.start_over()
                self.admit([turn])
            return
        self.seconds_to_admit = time.monotonic() - began
        self.statistics.counts.update(admissions=1, admitted=len(group))

    @torch.no_grad()
    def step(self) -> None:
        """Write one token of each reply, and finish the replies that have ended."""
        self._drop()
        if not self._running or self._replies is None:
            return
        self.statistics.counts.update(steps=1, step_rows=len(self._running))
        try:
            ended = set(map(id, self._replies.step()))
        except Exception as error:
            self.fail_all(error)
            return
        for turn in self._running:
            turn.tell_words()
            if id(turn.reply) in ended:
                self._finish(turn)
        self._running = [turn for turn in self._running if id(turn.reply) not in ended]

    def fail_all(self, error: Exception) -> None:
        """End every turn in progress."""
        for turn in self._running:
            self.fail(turn, error)
        self._running = []
        self._replies = self._no_replies()

    def fail(self, turn: Turn, error: Exception) -> None:
        """End a turn without an answer. Whoever cancelled it has been told why."""
        error = turn.ticket.cancellation or error
        kind = {TimeoutError: "late", Cancelled: "cancelled"}.get(type(error), "failed")
        self.statistics.counts[kind] += 1
        turn.fail(error)

    def drop(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns that are neither cancelled nor past their deadline; the others end."""
        now, left = time.monotonic(), []
        for turn in turns:
            if turn.ticket.cancellation is not None:
                self.fail(turn, turn.ticket.cancellation)
            elif turn.is_late(now):
                deadline = turn.request.deadline
                self.fail(turn, TimeoutError(f"no answer within the deadline of {deadline} s"))
            else:
                left.append(turn)
        return left

    def _drop(self) -> None:
        left = self.drop(self._running)
        if len(left) == len(self._running):
            return
        staying = set(map(id, left))
        gone = [turn.reply for turn in self._running if id(turn) not in staying]
        if self._replies is not None:
            self._replies.remove([reply for reply in gone if reply is not None])
        self._running = left

    def _admit(self, group: Sequence[Turn]) -> None:
        for turn in group:
            if turn.beginning is None:
                turn.ended("queue")
        if self._lm is None or not self._fit(group):
            for turn in group:
                self._answer_alone(turn)
            return
        turns = self._read(group)
        self._rank(turns, group)
        prefixes = [turn.prefix() for turn in group]
        device = turns.ids.device
        parts = [([group[row] for row in rows], prompt) for rows, prompt in turns.open(prefixes)]
        for turn in group:
            turn.ended("rank")
            turn.tell_items()
        assert self._replies is not None
        for members, prompt in parts:
            self._replies.join(prompt, [turn.begin_reply(device) for turn in members])
            self._running += members

    def _read(self, group: Sequence[Turn]) -> TurnBatch:
        """Prefill, from what is kept of the conversations where something is."""
        began = time.monotonic()
        assert self._lm is not None
        contexts = [turn.context for turn in group]
        kept = [self._known(turn) for turn in group]
        room = max(turn.room for turn in group)
        known = [0 if one is None else one[1] for one in kept]
        new = max(len(context) - n for context, n in zip(contexts, known, strict=True))
        cache = None
        if any(kept):
            cache = TurnCache(resumed(self._lm, kept, room + new))
        turns = TurnBatch(group[0].catalogue.recommender.bundle, contexts, cache, room=room)
        assert turns.prompt is not None
        for row, turn in enumerate(group):
            if turn.request.conversation is not None and self.conversations.limit:
                tokens = KeptTokens.of(turns.prompt, row)
                self.conversations.keep(turn.request.conversation, tokens)
            turn.beginning = None
            turn.ended("prefill")
        self._note_speed(new * len(group), began)
        return turns

    def _read_chunk(self, turn: Turn) -> None:
        began = time.monotonic()
        assert self._lm is not None
        if turn.beginning is None:
            turn.ended("queue")
            known = self._known(turn)
            room = len(turn.context) + turn.room
            turn.beginning = resumed(self._lm, [known], room) if known else None
        first = 0 if turn.beginning is None else turn.beginning.length
        tokens = turn.context[first : min(first + self.max_chunk, len(turn.context) - 1)]
        ids = torch.tensor([tokens], device=self._lm.model.device)
        if turn.beginning is None:
            batch = PaddedBatch(ids, torch.ones_like(ids, dtype=torch.bool), False)
            turn.beginning = Prompt.of(self._lm, batch, room)
        else:
            turn.beginning.append(ids)
        self._note_speed(len(tokens), began)

    def _known(self, turn: Turn) -> tuple[KeptTokens, int] | None:
        """What needs not be read of a turn's context, and how many tokens these are."""
        if turn.beginning is not None:
            beginning = KeptTokens.of(turn.beginning, 0, is_copied=False)
            return beginning, turn.beginning.length
        known = self.conversations.find(turn.request.conversation, turn.context)
        turn.cached_tokens = 0 if known is None else known[1]
        return known

    def _note_speed(self, tokens: int, began: float) -> None:
        seconds = (time.monotonic() - began) / tokens
        self.seconds_per_token += 0.2 * (seconds - self.seconds_per_token)

    def _rank(self, turns: TurnBatch, group: Sequence[Turn]) -> None:
        """Choose the modes and find the items of each turn in mode "rec"."""
        rows_of: dict[int, list[int]] = {}
        for row, (turn, chance) in enumerate(
            zip(group, turns.rec_probability.tolist(), strict=True)
        ):
            if turn.prefers_items(chance):
                rows_of.setdefault(turn.request.num_beams, []).append(row)
        join = group[0].catalogue.recommender.join
        for num_beams, rows in rows_of.items():
            most = turns.rows_at_once(num_beams)
            for first in range(0, len(rows), most):
                some = rows[first : first + most]
                lists = [group[row].exposed for row in some]
                fill_lists(turns, some, lists, num_beams=num_beams, join=join)
        for turn in group:
            turn.take_items()

    def _fit(self, group: Sequence[Turn]) -> bool:
        """Whether the turns fit into the model's attention window, padding included."""
        if self._window is None:
            return True
        kept = max(self.conversations.length(turn.request.conversation) for turn in group)
        longest = max(len(turn.context) for turn in group)
        if kept + longest + max(turn.room for turn in group) <= self._window:
            return True
        self._say_alone(f"they are longer than its attention window of {self._window} tokens")
        return False

    def _say_alone(self, reason: str) -> None:
        name = type(unwrapped(self.model)).__name__
        # Python shows the same warning once.
        warnings.warn(f"Engine: {name} answers turns one at a time ({reason})", stacklevel=4)

    def _answer_alone(self, turn: Turn) -> None:
        request, exposure, recommender = turn.request, turn.exposure, turn.catalogue.recommender
        with _seeded(request.seed if request.do_sample else None):
            response = recommender.respond(
                request.messages,
                request.mode,
                request.num_items,
                exposure.exclude,
                allow=exposure.allow,
                groups=exposure.groups,
                max_per_group=exposure.max_per_group,
                repeat_named=exposure.repeat_named,
                num_beams=request.num_beams,
                max_new_tokens=request.max_new_tokens,
                do_sample=request.do_sample,
                temperature=request.temperature,
                top_p=request.top_p,
            )
        turn.ranking = Ranking(response.mode, response.items, response.rec_probability)
        turn.ended("rank")
        turn.tell_items()
        completion = len(recommender.bundle.builder.text(response.text))
        self.statistics.answered(turn.finish(response, completion))

    def _finish(self, turn: Turn) -> None:
        assert turn.reply is not None
        titles = turn.catalogue.recommender.titles
        response = response_of(turn.builder, titles, turn.ranking, turn.reply.tokens)
        self.statistics.answered(turn.finish(response, len(turn.reply.tokens)))


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """torch's own random numbers from a seed, and as they were afterwards."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
