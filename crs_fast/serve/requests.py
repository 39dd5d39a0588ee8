"""What a caller of the engine asks, and what comes back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RankedItem = tuple[str, str, float]  # item id, title, score


@dataclass(frozen=True)
class TurnRequest:
    """One turn of one conversation. What `Recommender.respond` takes has the same meaning here.

    messages: the whole conversation so far, the seeker's last message at its end
    mode: "chat" or "rec" forces the intent; None lets the model choose
    num_items: the most items to return in mode "rec"
    exclude: item ids that may be neither recommended nor named in the reply. Ids that are not in
        the catalogue (any more) do no harm and come back as `TurnAnswer.unknown_items`
    allow: if given, only these item ids may be recommended or named; unknown ids as in `exclude`
    groups: names of item groups that the catalogue defines; an item must be in one of them. Unknown
        names as in `exclude`
    max_per_group: the most items of one group in the list, for every group or by name
    num_beams: width of the beam search over items, at least `num_items`
    max_new_tokens: the most tokens of the reply
    do_sample, temperature, top_p: how the reply's words are chosen (greedy by default)
    seed: of the random numbers of `do_sample`. The same request with the same seed gets the same
        reply, whatever other requests share its batch
    conversation: a name that is the same for all turns of a conversation. The engine keeps what
        the model has read under this name, so that the next turn reads only the new words
    repeat_named: whether items that were named or shown before may be recommended again. If not,
        the list also holds each film once
    deadline: seconds from `submit` after which the request fails with `TimeoutError`
    """

    messages: Sequence[Mapping[str, Any]]
    mode: str | None = None
    num_items: int = 10
    exclude: Collection[str] = ()
    allow: Collection[str] | None = None
    groups: Collection[str] = ()
    max_per_group: int | Mapping[str, int] | None = None
    num_beams: int = 50
    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    conversation: str | None = None
    repeat_named: bool = False
    deadline: float | None = None


@dataclass
class TurnAnswer:
    """One recommender turn.

    mode: "chat" or "rec"
    items: (item id, title, score), best first; empty in mode "chat"
    text: the reply, with titles in place of semantic IDs
    rec_probability: the model's probability of "rec" against "chat"
    named: ids of the items that the reply names, in order
    invalid_items: number of fragments of semantic IDs in the reply that are no item; always 0
    unknown_items: ids and groups of the request that the catalogue lacks
    already_named: ids that were not recommended because they were named or shown before
    catalogue_version: version of the catalogue that the turn was answered from
    timings: milliseconds: "queue_ms", "prefill_ms", "rank_ms", "write_ms", "total_ms"
    usage: tokens: "prompt_tokens", "cached_tokens" (those of the prompt that the model did not read
        again), "completion_tokens"
    """

    mode: str
    items: list[RankedItem]
    text: str
    rec_probability: float
    named: list[str]
    invalid_items: int
    unknown_items: list[str] = field(default_factory=list)
    already_named: list[str] = field(default_factory=list)
    catalogue_version: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)


class Ranked(NamedTuple):
    """The first event of a turn: its mode and its items are known."""

    mode: str
    items: list[RankedItem]
    rec_probability: float
    unknown_items: list[str]
    already_named: list[str]
    catalogue_version: str


class Text(NamedTuple):
    """More of the reply. All deltas of a turn together are `TurnAnswer.text`."""

    delta: str


class Done(NamedTuple):
    """The last event of a turn that was answered."""

    answer: TurnAnswer


class Failed(NamedTuple):
    """The last event of a turn that was not answered. `error` is `Cancelled`, `TimeoutError` where
    the deadline passed, or what went wrong."""

    error: Exception


Event = Ranked | Text | Done | Failed


class Busy(RuntimeError):
    """The engine's queue is full. Try again later."""


class Cancelled(RuntimeError):
    """The caller cancelled the request, or the engine was closed."""
