"""A recommender turn from its conversation: mode and items first, then the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import CHAT, MODES, REC, likelier_mode
from crs_fast.crs.data.dialogue import Turn
from crs_fast.crs.exposure import ExposedList, fill_lists
from crs_fast.crs.joined_beams import JoinedBeams
from crs_fast.crs.sequence import SequenceBuilder
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.trie import ItemFilter
from crs_fast.trie.item_filter import stacked

RankedItem = tuple[str, str, float]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is known of a recommender turn before its words: its mode and items, as in
    `Response`."""

    mode: str
    items: list[RankedItem]
    rec_probability: float


@dataclass(frozen=True, slots=True)
class Response:
    """One recommender turn.

    mode: "chat" or "rec"
    items: (item id, title, score), best first. A score is a sum of log-probabilities, or 0.0 for
        an item that the caller gave. Empty in mode "chat"
    text: the reply, with titles in place of semantic IDs
    rec_probability: the model's probability of "rec" against "chat"
    named: ids of the items that the reply names, in order
    invalid_items: number of fragments of semantic IDs in the reply that are no item
    """

    mode: str
    items: list[RankedItem]
    text: str
    rec_probability: float
    named: list[str]
    invalid_items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """How the turns of one call are answered, see `Recommender.respond`. `given` are the items that
    the caller chose; with `max_new_tokens` 0 no words follow."""

    mode: str | None = None
    given: tuple[str, ...] = ()
    num_items: int = 10
    num_named: int = 1
    num_beams: int = 50
    normalize: str = "vocab"
    max_new_tokens: int = 64
    only_chosen: bool = False
    join: JoinedBeams | None = None

    @property
    def named(self) -> int:
        """How many items stand before the reply."""
        return len(self.given) or self.num_named

    def check(self, op: str, titles: Mapping[str, str]) -> None:
        """
        Raises:
            ValueError: see `Recommender.respond`.
        """
        mode, given, beams = self.mode, list(self.given), self.num_beams
        if mode is not None and (mode not in MODES or (mode == CHAT and given)):
            raise ValueError(
                f"{op}: mode must be one of {MODES}, and 'rec' with an item "
                f"(got mode={mode!r}, item={given!r})"
            )
        for name in ("num_items", "num_beams", "num_named", "max_new_tokens"):
            if not hasattr(getattr(self, name), "__index__"):
                raise ValueError(f"{op}: {name} must be an integer (got {getattr(self, name)!r})")
        if self.max_new_tokens < 1 and op != "rank":
            raise ValueError(f"{op}: max_new_tokens must be at least 1 (got {self.max_new_tokens})")
        if not 1 <= self.num_items <= beams:
            raise ValueError(
                f"{op}: num_items must be at least 1 and at most num_beams "
                f"(got {self.num_items} and {beams})"
            )
        if not 1 <= self.num_named <= self.num_items:
            raise ValueError(
                f"{op}: num_named must be at least 1 and at most num_items "
                f"(got {self.num_named} and {self.num_items})"
            )
        unknown = [i for i in given if i not in titles]
        if unknown:
            raise ValueError(
                f"{op}: exclude, allow and item must be ids of the catalogue (got {unknown[0]!r})"
            )
        if self.join is not None:
            self.join.need_exact(self.normalize)
        if len(set(given)) < len(given):
            raise ValueError(f"{op}: item must hold each item once (got {given!r})")


class BegunTurns(NamedTuple):
    """Turns before their words are written: what begins each reply, and what it may name."""

    turns: TurnBatch
    rankings: list[Ranking]
    prefixes: list[list[int]]
    filters: ItemFilter | None


def read_contexts(
    bundle: Bundle,
    contexts: Sequence[Sequence[Turn]],
    options: TurnOptions,
    cache: TurnCache | None = None,
) -> TurnBatch:
    """The conversations, read by the model, with room for a search and a reply."""
    tokens = [context_tokens(bundle, turns, options) for turns in contexts]
    return TurnBatch(bundle, tokens, cache, room=room_behind(bundle, options))


def context_tokens(bundle: Bundle, turns: Sequence[Turn], options: TurnOptions) -> list[int]:
    """What the model reads of a conversation: as much of its end as leaves space for the reply."""
    reserve = min(_reply_length(bundle, options), bundle.builder.max_length // 2)
    return bundle.builder.context(turns, reserve=reserve)


def room_behind(bundle: Bundle, options: TurnOptions) -> int:
    """Cache positions that a search and a reply need behind the context."""
    levels = bundle.vocab.num_levels
    # The search needs tree positions for all levels but the last. They are dropped before the
    # reply is written, which may exceed max_new_tokens to finish its last item.
    search = 2 + options.num_beams * (levels - 1)
    return max(search, _reply_length(bundle, options) + levels + 1)


def _reply_length(bundle: Bundle, options: TurnOptions) -> int:
    return 2 + options.named * (bundle.vocab.num_levels + 2) + options.max_new_tokens


def begin_turns(
    turns: TurnBatch,
    lists: Sequence[ExposedList],
    options: TurnOptions,
    titles: Mapping[str, str],
) -> BegunTurns:
    """Choose each request's mode and items.

    Args:
        turns: what `read_contexts` read.
        lists: an empty list for each request; it is filled.
        titles: the title of each item.
    """
    if options.given:
        items = [[(i, titles[i], 0.0) for i in options.given] for _ in lists]
    else:
        items = rank_items(turns, _recommending(turns, options.mode), lists, options, titles)
    rankings = [
        Ranking(REC if of_request else CHAT, of_request, probability)
        for of_request, probability in zip(items, turns.rec_probability.tolist(), strict=True)
    ]
    named = [[i for i, _, _ in of_request[: options.named]] for of_request in items]
    prefixes = [reply_prefix(turns.bundle, item_ids) for item_ids in named]
    filters = [one.reply_filter for one in lists]
    if options.only_chosen:
        for row, item_ids in enumerate(named):
            if item_ids:
                chosen, given = turns.bundle.trie.filter(allow=item_ids), filters[row]
                filters[row] = chosen if given is None else chosen & given
    return BegunTurns(turns, rankings, prefixes, stacked(filters))


def rank_items(
    turns: TurnBatch,
    rows: Sequence[int],
    lists: Sequence[ExposedList],
    options: TurnOptions,
    titles: Mapping[str, str],
) -> list[list[RankedItem]]:
    """For each request, (id, title, score) of its items, best first; [] if it is not in `rows`."""
    chosen = [lists[row] for row in rows]
    fill_lists(
        turns,
        rows,
        chosen,
        num_beams=options.num_beams,
        normalize=options.normalize,
        join=options.join,
    )
    return [[(i, titles[i], score) for i, score in one.items] for one in lists]


def _recommending(turns: TurnBatch, mode: str | None) -> list[int]:
    """The requests whose mode is REC."""
    probabilities = turns.rec_probability.tolist()
    return [row for row, p in enumerate(probabilities) if (mode or likelier_mode(p)) == REC]


def reply_prefix(bundle: Bundle, item_ids: Sequence[str]) -> list[int]:
    """The tokens with which a reply about these items begins; without items, a chat reply."""
    builder, control = bundle.builder, bundle.control
    if not item_ids:
        return builder.prefix(CHAT)
    blocks = [token for item_id in item_ids for token in builder.item(item_id)]
    return [control.rec, *blocks, control.resp]


def response_of(
    builder: SequenceBuilder, titles: Mapping[str, str], ranking: Ranking, reply: Sequence[int]
) -> Response:
    """The turn whose reply has these tokens. `builder` is the request's own, see
    `SequenceBuilder.naming`."""
    named, invalid = builder.sid_fragments(reply)
    text = builder.decode(reply, titles)
    return Response(ranking.mode, ranking.items, text, ranking.rec_probability, named, invalid)
