"""The neutral dialogue type: what every reader makes and everything after it takes.

A mention points into the text by character offsets, so the same turn can be shown with titles,
turned into semantic IDs, or reduced to `<movie>` placeholders without searching the text again.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import index
from typing import Any

from crs_fast._arguments import all_of_kind, check_kind, is_integer

SEEKER = "seeker"
RECOMMENDER = "recommender"
ROLES = (SEEKER, RECOMMENDER)
OTHER = "other"  # an intent that says nothing
OPINIONS = ("disliked", "liked", "not said")
_DIGITS = re.compile(r"\s*([0-9]{1,9})(?:\.0*)?\s*")


def is_null(value: Any) -> bool:
    """None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def whole_number(value: Any) -> int | None:
    """An integer as people have it: numpy's, a float without a fraction (as pandas makes them of a
    column with gaps), or digits; None where it is no such thing."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        digits = _DIGITS.fullmatch(value)
        return int(digits[1]) if digits else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return index(value)
    except TypeError:
        return None


@dataclass(frozen=True, slots=True)
class Item:
    """One catalogue entry. `fields` maps a field's name ("genres", "plot", ...) to its text.
    Entries with one `imdb_id` are the same film (see `crs_fast.crs.evaluation.score`).

    Raises:
        ValueError: an id, a title or an `imdb_id` that is no string, a year that is no whole
            number, or fields that are no mapping.
    """

    item_id: str
    title: str
    year: int | None = None
    fields: dict[str, str] = field(default_factory=dict)
    imdb_id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.item_id, str):
            raise ValueError(f"Item: item_id must be a string (got {self.item_id!r})")
        if not isinstance(self.title, str):
            raise ValueError(f"Item: title must be a string (got {self.title!r})")
        if not isinstance(self.fields, Mapping):
            raise ValueError(f"Item: fields must map names to texts (got {self.fields!r:.100})")
        if self.imdb_id is not None and not isinstance(self.imdb_id, str):
            raise ValueError(f"Item: imdb_id must be a string or None (got {self.imdb_id!r})")
        year = None if is_null(self.year) else whole_number(self.year)
        if year is None and not is_null(self.year):
            raise ValueError(f"Item: year must be an integer or None (got {self.year!r})")
        object.__setattr__(self, "year", year)

    def text(self) -> str:
        """Text for an encoder, `title: T | year: Y | genres: G | ...`; missing fields left out."""
        parts = [("title", self.title), ("year", str(self.year) if self.year else "")]
        parts += list(self.fields.items())
        return " | ".join(f"{name}: {value}" for name, value in parts if value)

    def display(self) -> str:
        """`Title (year)`, or the bare title where the year is unknown."""
        return f"{self.title} ({self.year})" if self.year else self.title


@dataclass(frozen=True, slots=True)
class Mention:
    """An item named in a turn. `start:end` are character offsets into the turn's text;
    both are None when the turn is known to name the item but where is not.

    Raises:
        ValueError: an id that is no string, or offsets that are not both integers or both None.
    """

    item_id: str
    start: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.item_id, str):
            raise ValueError(f"Mention: item_id must be a string (got {self.item_id!r})")
        if self.start is self.end is None or type(self.start) is type(self.end) is int:
            return
        if not (is_integer(self.start) and is_integer(self.end)):
            raise ValueError(
                "Mention: start and end must both be integers, or both None "
                f"(got {self.start!r} and {self.end!r})"
            )

    @property
    def located(self) -> bool:
        return self.start is not None

    def __str__(self) -> str:
        return f"{self.item_id!r} at {self.start}:{self.end}"


def _text_order(mention: Mention) -> tuple[bool, int]:
    """The order of a turn's mentions: as they stand in the text, unlocated ones last."""
    return not mention.located, mention.start or 0


@dataclass(frozen=True, slots=True)
class Turn:
    """What one role says before the other speaks. Mentions may be given in any order and are kept
    in text order, unlocated ones last. `intent` is what a recommender turn is for, where somebody
    has said so. Where several messages were joined, `breaks` says at which characters the second
    and later ones begin; turns that differ in nothing else are equal. `corrected` holds the
    distinct items that people found in the turn where they corrected the data set's labels by hand;
    None where nobody did.

    Raises:
        ValueError: an unknown role, a text or an intent that is no string, a mention that lies
            outside the text or overlaps another, breaks that don't rise inside the text, or
            corrected labels that are no ids.
    """

    role: str
    text: str
    mentions: tuple[Mention, ...] = ()
    intent: str | None = None
    breaks: tuple[int, ...] = field(default=(), compare=False)
    corrected: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"Turn: role must be one of {ROLES} (got {self.role!r})")
        if not isinstance(self.text, str):
            raise ValueError(f"Turn: text must be a string (got {self.text!r:.100})")
        if self.intent is not None and not isinstance(self.intent, str):
            raise ValueError(f"Turn: intent must be a string or None (got {self.intent!r})")
        if self.breaks != ():
            all_of_kind("Turn: breaks", self.breaks, int, "a tuple of integers")
        if self.corrected is not None:
            all_of_kind("Turn: corrected", self.corrected, str, "a tuple of item ids, or None")
        inside = range(1, len(self.text) + 1)
        if any(b not in inside for b in self.breaks) or list(self.breaks) != sorted(self.breaks):
            raise ValueError(
                "Turn: breaks must be rising places inside the text "
                f"(got {self.breaks} in a text of {len(self.text)} characters)"
            )
        if self.mentions != ():
            object.__setattr__(self, "mentions", self._ordered_mentions())
        before: Mention | None = None
        for mention in self.mentions:
            if mention.start is None or mention.end is None:
                continue
            if not 0 <= mention.start < mention.end <= len(self.text):
                raise ValueError(
                    "Turn: mentions must be spans inside the text, "
                    f"0 <= start < end <= {len(self.text)} (got {mention})"
                )
            if before is not None and before.end is not None and mention.start < before.end:
                raise ValueError(f"Turn: mentions must not overlap (got {before} and {mention})")
            before = mention

    def _ordered_mentions(self) -> tuple[Mention, ...]:
        mentions = self.mentions
        # Readers make a turn for every message, so what they give is looked at in one pass.
        if not (type(mentions) is tuple and all(type(m) is Mention for m in mentions)):
            mentions = all_of_kind("Turn: mentions", mentions, Mention, "a tuple of Mentions")
        return mentions if len(mentions) == 1 else tuple(sorted(mentions, key=_text_order))

    def item_ids(self) -> list[str]:
        """Distinct items of the turn, in order of first mention."""
        return list(dict.fromkeys(m.item_id for m in self.mentions))

    def message_items(self) -> list[list[str]]:
        """Distinct items of each message that was joined into the turn, in order of first mention.
        An unlocated mention counts as the last message's: nothing says which one made it."""
        messages: list[list[str]] = [[] for _ in range(len(self.breaks) + 1)]
        for mention in self.mentions:
            start = len(self.text) if mention.start is None else mention.start
            items = messages[bisect_right(self.breaks, start)]
            if mention.item_id not in items:
                items.append(mention.item_id)
        return messages

    def before(self, message: int) -> Turn:
        """The turn as it stood when `message` (at least 1) of it had not been sent."""
        text = self.text[: self.breaks[message - 1]].rstrip()
        mentions = tuple(m for m in self.mentions if m.end is not None and m.end <= len(text))
        return Turn(self.role, text, mentions)

    def pieces(self) -> Iterator[tuple[str, str | None]]:
        """The text cut at located mentions: (text, None) and (surface, item_id), in order."""
        at = 0
        for mention in self.mentions:
            if mention.start is None or mention.end is None:
                continue
            if mention.start > at:
                yield self.text[at : mention.start], None
            yield self.text[mention.start : mention.end], mention.item_id
            at = mention.end
        if at < len(self.text):
            yield self.text[at:], None

    def with_placeholder(self, placeholder: str = "<movie>") -> str:
        """The text with every located mention replaced by `placeholder`."""
        return "".join(placeholder if item is not None else text for text, item in self.pieces())


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation; neighbouring turns have different roles (see `merge_turns`). `liked` is what
    the seeker said of items (item id -> one of OPINIONS) after it was over, and `seen` the items
    that the seeker then had seen: for oracles and for scoring alone.

    Raises:
        ValueError: an id that is no string, turns that are no `Turn`s, an unknown opinion, or items
            that are no ids.
    """

    dialogue_id: str
    turns: tuple[Turn, ...]
    liked: dict[str, str] = field(default_factory=dict)
    seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.dialogue_id, str):
            raise ValueError(
                f"Dialogue: dialogue_id must be a string (got {self.dialogue_id!r:.100})"
            )
        check_kind("Dialogue: turns", self.turns, tuple | list, "a tuple of Turns")
        all_of_kind("Dialogue: turns", self.turns, Turn, "a tuple of Turns")
        check_kind("Dialogue: liked", self.liked, Mapping, "a mapping of item ids to opinions")
        for opinion in self.liked.values():
            if opinion not in OPINIONS:
                raise ValueError(
                    f"Dialogue: liked must hold opinions of {OPINIONS} (got {opinion!r})"
                )
        if self.seen != ():
            all_of_kind("Dialogue: seen", self.seen, str, "a tuple of item ids")


@dataclass(frozen=True, slots=True)
class CrsDataset:
    """A catalogue and its dialogues. Item order is the catalogue's order: every tie in a ranking
    goes to the lower index. `splits` holds "train", "valid" and "test" where they exist.

    Raises:
        ValueError: a name that is no string, items that are no `Item`s, or splits that are no
            mapping of names to `Dialogue`s.
    """

    name: str
    items: tuple[Item, ...]
    splits: dict[str, tuple[Dialogue, ...]]

    def __post_init__(self) -> None:
        check_kind("CrsDataset: name", self.name, str, "a string")
        check_kind("CrsDataset: items", self.items, tuple | list, "a tuple of Items")
        all_of_kind("CrsDataset: items", self.items, Item, "a tuple of Items")
        must_be = "a mapping of names to tuples of Dialogues"
        check_kind("CrsDataset: splits", self.splits, Mapping, must_be)
        for dialogues in self.splits.values():
            check_kind("CrsDataset: splits", dialogues, tuple | list, must_be)
            all_of_kind("CrsDataset: splits", dialogues, Dialogue, must_be)


def need_splits(dataset: CrsDataset, caller: str, names: Iterable[str]) -> None:
    """Look for the splits that work will need, before it begins.

    Raises:
        ValueError: one of them is missing or empty.
    """
    held = [name for name, dialogues in dataset.splits.items() if dialogues]
    for name in names:
        if name not in held:
            raise ValueError(
                f"{caller}: dataset must have a split {name!r} that is not empty (got {held})"
            )


def need_distinct_ids(dialogues: Iterable[Dialogue], caller: str) -> None:
    """What is written of dialogues names them by their ids.

    Raises:
        ValueError: two dialogues have one id.
    """
    seen: set[str] = set()
    for dialogue in dialogues:
        if dialogue.dialogue_id in seen:
            raise ValueError(
                f"{caller}: dialogue_id must be given once in a split "
                f"(got {dialogue.dialogue_id!r} again)"
            )
        seen.add(dialogue.dialogue_id)


def merge_turns(turns: Sequence[Turn], separator: str = " ") -> tuple[Turn, ...]:
    """Join one role's consecutive messages into one turn, mention offsets moved along; its intent
    is the first that is not OTHER, and `breaks` says where the messages begin."""
    return tuple(_joined(list(group), separator) for _, group in groupby(turns, _role))


def _role(turn: Turn) -> str:
    return turn.role


def _joined(turns: Sequence[Turn], separator: str) -> Turn:
    """Turns of one role as one."""
    if len(turns) == 1:
        return turns[0]
    mentions: list[Mention] = []
    breaks: list[int] = []
    at = 0
    for turn in turns:
        for m in turn.mentions:
            if m.start is not None and m.end is not None:
                m = Mention(m.item_id, m.start + at, m.end + at)
            mentions.append(m)
        breaks += (*([at] if at else []), *(b + at for b in turn.breaks))
        at += len(turn.text) + len(separator)
    intents = [turn.intent for turn in turns if turn.intent is not None]
    intent = next((i for i in intents if i != OTHER), intents[-1] if intents else None)
    labelled = [turn.corrected for turn in turns if turn.corrected is not None]
    corrected = tuple(dict.fromkeys(i for ids in labelled for i in ids)) if labelled else None
    text = separator.join(turn.text for turn in turns)
    return Turn(turns[0].role, text, tuple(mentions), intent, tuple(breaks), corrected)
