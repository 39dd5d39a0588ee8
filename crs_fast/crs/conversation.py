"""The messages of a conversation, as callers give them, checked and turned into turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Mention, Turn, merge_turns
from crs_fast.crs.data.entity_linking import MAX_CHARACTERS

ROLES = {"user": SEEKER, "assistant": RECOMMENDER, SEEKER: SEEKER, RECOMMENDER: RECOMMENDER}
Message = Mapping[str, Any]
Messages = Sequence[Message]


def as_batch(messages: Any, op: str) -> tuple[list[Messages], bool]:
    """The conversations of one call, and whether it was a single one.

    Raises:
        ValueError: a conversation without a message, or something that is no message.
    """
    if not isinstance(messages, Iterable) or isinstance(messages, str | Mapping):
        raise ValueError(
            f"{op}: messages must be a list of messages (got {type(messages).__name__})"
        )
    messages = messages if isinstance(messages, Sequence) else list(messages)
    single = not messages or isinstance(messages[0], Mapping)
    batch: list[Messages] = [messages] if single else list(messages)
    if not batch or not all(batch):
        raise ValueError(f"{op}: messages must hold at least one message (got none)")
    for one in batch:
        listed = one if isinstance(one, list | tuple) else [one]
        odd = [m for m in listed if not isinstance(m, Mapping)]
        if odd:
            raise ValueError(
                f"{op}: messages must be a list of {{'role': …, 'content': …}}, or a batch of "
                f"such lists (got {type(odd[0]).__name__})"
            )
    return batch, single


def turns_of(messages: Messages, link: Callable[[str], Iterable[Mention]]) -> tuple[Turn, ...]:
    """The messages as turns, with the mentions of items that `link` finds in a text.

    Raises:
        ValueError: a message of an unknown role, without text, or with too much of it.
    """
    return merge_turns([_turn(message, link) for message in messages])


def _turn(message: Message, link: Callable[[str], Iterable[Mention]]) -> Turn:
    role, text = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
        raise ValueError(
            f"respond: a message must have a role of {sorted(ROLES)} and a content string "
            f"(got {dict(message)!r})"
        )
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"respond: a message must have at most {MAX_CHARACTERS} characters (got {len(text)})"
        )
    given = message.get("items")
    if given is None:
        return Turn(ROLES[role], text, tuple(link(text)))
    mentions = [Mention(m["item_id"], m.get("start"), m.get("end")) for m in given]
    return Turn(ROLES[role], text, tuple(mentions))


def shown_items(messages: Iterable[Message]) -> list[str]:
    """The ids of the items that were shown beside the messages."""
    return [item_id for message in messages for item_id in message.get("shown") or ()]
