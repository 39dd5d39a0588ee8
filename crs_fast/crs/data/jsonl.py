"""The package's own format of items and dialogues.

A data set is a folder of JSON-lines files in UTF-8, each plain or gzipped (`items.jsonl.gz`):

`items.jsonl`, the catalogue, one item a line; line order is the catalogue's order:

    {"item_id": "m17", "title": "Heat", "year": 1995, "genres": ["crime"], "plot": "…"}

`item_id` (a non-empty string) and `title` are required, `year` is an integer ("1995" and 1995.0 are
taken for one), null or absent, and `imdb_id` a string, null or absent (items that share one are the
same film). Any other key is a text
field of the item (`genres`, `director`, `cast`, `keywords`, `plot`, …): a string or a list of
strings, which is joined by ", ". Field order is kept.

`train.jsonl`, `valid.jsonl`, `test.jsonl` (at least one), one dialogue a line:

    {"dialogue_id": "d1", "turns": [
      {"role": "seeker", "text": "I liked Heat.",
       "items": [{"item_id": "m17", "start": 8, "end": 12}]},
      {"role": "recommender", "text": "Try Ronin!", "items": [{"item_id": "m40"}]}]}

`role` is "seeker" or "recommender". `items` (optional) are the items the turn names: `start:end`
count characters (Unicode code points) of `text`; without them the item counts as named, but where
is not known. Neighbouring turns of one role are joined by a space. A turn may have an `intent`, any
name; `breaks`, the characters at which the second and later of the messages that it joins begin;
and `corrected`, the ids of the items that it names by labels corrected by hand. A dialogue may have
`liked`, {item id: "liked", "disliked" or "not said"}, and `seen`, a list of item ids: what the
seeker said after it was over. No file may give an item_id or a dialogue_id twice.

A row may have OpenAI's `messages` in place of `turns` (`crs_fast.crs.data.messages`).

NaN counts as null, as pandas writes it. Half of a surrogate pair ("\\ud83d"), which no other file
and no tokenizer can hold, becomes U+FFFD, and the report counts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from crs_fast._arguments import all_of_kind, check_path
from crs_fast.crs.data.dialogue import (
    OPINIONS,
    CrsDataset,
    Dialogue,
    Item,
    Mention,
    Turn,
    merge_turns,
    need_distinct_ids,
    whole_number,
)
from crs_fast.crs.data.entity_linking import TitleIndex
from crs_fast.crs.data.lines import (
    Once,
    OnError,
    ReadReport,
    check_reading,
    data_object,
    find_file,
    need_file,
    read_lines,
    write_lines,
)
from crs_fast.crs.data.messages import turn_records

SPLITS = ("train", "valid", "test")

_ITEM_KEYS = ("item_id", "title", "year", "imdb_id")


def _string(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a non-empty string (got {value!r})")
    return value


def _field_text(key: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string or a list of strings (got {value!r})")
    return value


def _integer(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    number = None if value is None else whole_number(value)
    if number is None and value is not None:
        raise ValueError(f"{key} must be an integer or null (got {value!r})")
    return number


def item_of(record: dict[str, Any]) -> Item:
    """The item of one row, with the keys of an items.jsonl.

    Raises:
        ValueError, KeyError: the row is broken.
    """
    year = _integer(record, "year")
    imdb_id = None if record.get("imdb_id") is None else _string(record, "imdb_id")
    extra = {k: v for k, v in record.items() if k not in _ITEM_KEYS and v is not None}
    fields = {key: _field_text(key, value) for key, value in extra.items()}
    return Item(_string(record, "item_id"), _string(record, "title"), year, fields, imdb_id)


def read_items(
    path: str | Path, on_error: OnError = "raise", report: ReadReport | None = None
) -> tuple[Item, ...]:
    """Read an `items.jsonl` (this module's docstring has the format).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a broken line or an item_id given twice, unless `on_error` is "skip".
    """
    check_reading("read_items", path, on_error, report)
    ids = Once("item_id")

    def parse(line: str) -> Item:
        item = item_of(data_object(line, report))
        ids.check(item.item_id)
        return item

    return tuple(read_lines(Path(path), parse, on_error, report))


def _place(entry: dict[str, Any], key: str) -> Any:
    """A character offset; one without a fraction is an integer."""
    value = entry.get(key)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_turn(record: dict[str, Any], known: Collection[str] | None) -> Turn:
    mentions = []
    for entry in record.get("items") or []:
        item_id, start, end = (
            _string(entry, "item_id"),
            _place(entry, "start"),
            _place(entry, "end"),
        )
        if known is not None and item_id not in known:
            raise ValueError(f"item_id must be in the catalogue (got {item_id!r})")
        if not (start is end is None or type(start) is type(end) is int):
            raise ValueError(f"start and end must both be integers or absent (got {start}, {end})")
        mentions.append(Mention(item_id, start, end))
    if not isinstance(record["text"], str):
        raise ValueError(f"text must be a string (got {record['text']!r})")
    intent = None if record.get("intent") is None else _string(record, "intent")
    breaks = record.get("breaks") or []
    if not isinstance(breaks, list) or any(type(b) is not int for b in breaks):
        raise ValueError(f"breaks must be a list of integers (got {breaks!r})")
    corrected = None if record.get("corrected") is None else _strings(record, "corrected")
    return Turn(record["role"], record["text"], tuple(mentions), intent, tuple(breaks), corrected)


def _strings(record: dict[str, Any], key: str) -> tuple[str, ...]:
    values = record.get(key) or []
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f"{key} must be a list of non-empty strings (got {values!r})")
    return tuple(values)


def _liked(record: dict[str, Any]) -> dict[str, str]:
    if odd := [opinion for opinion in record.values() if opinion not in OPINIONS]:
        raise ValueError(f"liked must hold opinions of {OPINIONS} (got {odd[0]!r})")
    return record


def dialogue_of(
    record: dict[str, Any],
    known: Collection[str] | None = None,
    turns: Sequence[Turn] | None = None,
) -> Dialogue:
    """The dialogue of one row, with the keys of a dialogues file.

    Args:
        record: the row.
        known: the catalogue's ids.
        turns: those of the row where they are read already.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the row is broken.
    """
    if turns is None:
        turns = [_parse_turn(turn, known) for turn in record["turns"]]
    liked = _liked(record.get("liked") or {})
    seen = _strings(record, "seen")
    return Dialogue(_string(record, "dialogue_id"), merge_turns(turns), liked, seen)


def read_dialogues(
    path: str | Path,
    items: Iterable[Item] | None = None,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> tuple[Dialogue, ...]:
    """Read a dialogues file (this module's docstring has the format).

    Args:
        path: the file.
        items: the catalogue; where given, a mention of anything else is a broken line, and
            `messages` without items are searched for its titles.
        on_error: what to do with a broken line.
        report: filled in where given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a broken line or a dialogue_id given twice, with file and line number, unless
            `on_error` is "skip".
    """
    check_reading("read_dialogues", path, on_error, report)
    if items is not None:
        items = all_of_kind("read_dialogues: items", items, Item, "Items, or None")
    parse, numbers = dialogue_parser(Path(path), items, report), count(1)

    def parse_line(line: str) -> Dialogue:
        number = next(numbers)
        return parse(number, data_object(line, report))

    return tuple(read_lines(Path(path), parse_line, on_error, report))


def dialogue_parser(
    path: Path, items: Iterable[Item] | None = None, report: ReadReport | None = None
) -> Callable[[int, dict[str, Any]], Dialogue]:
    """What reads the rows of one file, whatever its kind, as `read_dialogues` reads lines.

    Args:
        path: of the file. A row of `messages` without a `dialogue_id` is named by it.
        items, report: see `read_dialogues`.

    Returns:
        A function of a row's number, from 1, and the row. It raises ValueError, KeyError, TypeError
        or AttributeError for a broken row.
    """
    catalogue = None if items is None else tuple(items)
    known = None if catalogue is None else {item.item_id for item in catalogue}
    titles: list[TitleIndex] = []  # made at the first message that needs it
    ids = Once("dialogue_id")

    def linked(turn: Turn) -> Turn:
        if not titles:
            titles.append(TitleIndex(catalogue or ()))
        return replace(turn, mentions=tuple(titles[0].link(turn.text)))

    def parse(number: int, record: dict[str, Any]) -> Dialogue:
        turns = None
        if "messages" in record:
            record.setdefault("dialogue_id", f"{path.name.split('.')[0]}-{number}")
            records = turn_records(record["messages"], report)
            parsed = [(_parse_turn(said, known), "items" in said) for said in records]
            turns = [turn if has_items else linked(turn) for turn, has_items in parsed]
        dialogue = dialogue_of(record, known, turns)
        ids.check(dialogue.dialogue_id)
        return dialogue

    return parse


def write_items(path: str | Path, items: Sequence[Item]) -> None:
    """Write an `items.jsonl` that `read_items` reads back equal.

    Raises:
        ValueError: an item that the file can't hold, such as one with a field named item_id, title,
            year or imdb_id, or an item_id given twice.
        TypeError: a field that is no text.
    """
    check_path("write_items: path", path)
    items = all_of_kind("write_items: items", items, Item, "Items")
    for item in items:
        for name, text in item.fields.items():
            if not isinstance(text, str | list):
                raise TypeError(
                    f"write_items: fields of items must be strings (got {text!r:.100} for {name!r} "
                    f"of {item.item_id!r})"
                )
    check_items("write_items", items)
    write_lines(path, map(_item_record, items))


def check_items(op: str, items: Sequence[Item]) -> None:
    """Make sure, before work begins, that its end can write the items and read them back.

    Raises:
        ValueError: an item that an items.jsonl can't hold, or an item_id given twice.
    """
    ids = Once("item_id")
    for item in items:
        try:
            if clash := [key for key in _ITEM_KEYS if key in item.fields]:
                raise ValueError(f"fields must not be named {clash[0]!r} (got a field of it)")
            ids.check(item_of(data_object(json.dumps(_item_record(item)))).item_id)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{op}: item {item.item_id!r} must be one that an items.jsonl can hold: {error}"
            ) from None


def _item_record(item: Item) -> dict[str, Any]:
    film = {} if item.imdb_id is None else {"imdb_id": item.imdb_id}
    return {"item_id": item.item_id, "title": item.title, "year": item.year, **film, **item.fields}


def _mention_record(mention: Mention) -> dict[str, Any]:
    if not mention.located:
        return {"item_id": mention.item_id}
    return {"item_id": mention.item_id, "start": mention.start, "end": mention.end}


def _turn_record(turn: Turn) -> dict[str, Any]:
    items = [_mention_record(mention) for mention in turn.mentions]
    record: dict[str, Any] = {"role": turn.role, "text": turn.text, "items": items}
    if turn.intent is not None:
        record["intent"] = turn.intent
    if turn.breaks:
        record["breaks"] = list(turn.breaks)
    if turn.corrected is not None:
        record["corrected"] = list(turn.corrected)
    return record


def write_dialogues(path: str | Path, dialogues: Sequence[Dialogue]) -> None:
    """Write a dialogues file that `read_dialogues` reads back equal.

    Raises:
        ValueError: something else than dialogues, an empty id, an id given twice, or neighbouring
            turns of one role, which are one turn to a reader (see `merge_turns`).
    """
    check_path("write_dialogues: path", path)
    dialogues = all_of_kind("write_dialogues: dialogues", dialogues, Dialogue, "Dialogues")
    need_distinct_ids(dialogues, "write_dialogues: dialogues")
    for dialogue in dialogues:
        if not dialogue.dialogue_id:
            raise ValueError(
                "write_dialogues: dialogues must have a dialogue_id that is not empty (got '')"
            )
        if any(a.role == b.role for a, b in pairwise(dialogue.turns)):
            raise ValueError(
                "write_dialogues: dialogues must have neighbouring turns of different roles, as "
                f"merge_turns makes them (got {dialogue.dialogue_id!r})"
            )
    write_lines(
        path,
        (
            {
                "dialogue_id": dialogue.dialogue_id,
                "turns": list(map(_turn_record, dialogue.turns)),
                **({"liked": dialogue.liked} if dialogue.liked else {}),
                **({"seen": dialogue.seen} if dialogue.seen else {}),
            }
            for dialogue in dialogues
        ),
    )


def load_folder(
    folder: Path, on_error: OnError = "raise", report: ReadReport | None = None
) -> CrsDataset:
    """Read a folder in the package's own format.

    Raises:
        FileNotFoundError: no `items.jsonl`, or no split.
        ValueError: a broken line, unless `on_error` is "skip".
    """
    items = read_items(need_file(folder, "items.jsonl"), on_error, report)
    found = {split: find_file(folder, f"{split}.jsonl") for split in SPLITS}
    if not any(found.values()):
        need_file(folder, *(f"{split}.jsonl" for split in SPLITS))
    splits = {
        split: read_dialogues(path, items, on_error, report)
        for split, path in found.items()
        if path is not None
    }
    return CrsDataset(folder.name, items, splits)
