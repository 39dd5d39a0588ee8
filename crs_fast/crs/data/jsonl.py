"""The package's own format, and the line reading every other format shares.

A data set is a folder of JSON-lines files in UTF-8, each plain or gzipped (`items.jsonl.gz`):

`items.jsonl`, the catalogue, one item a line; line order is the catalogue's order:

    {"item_id": "m17", "title": "Heat", "year": 1995, "genres": ["crime"], "plot": "…"}

`item_id` (a non-empty string) and `title` are required, `year` is an integer, null or absent, and
`imdb_id` a string, null or absent (items that share one are the same film). Any other key is a text
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
seeker said after it was over.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from crs_fast._files import replacing
from crs_fast.crs.data.dialogue import (
    OPINIONS,
    CrsDataset,
    Dialogue,
    Item,
    Mention,
    Turn,
    merge_turns,
)

T = TypeVar("T")
OnError = Literal["raise", "skip"]
SPLITS = ("train", "valid", "test")

_ITEM_KEYS = ("item_id", "title", "year", "imdb_id")
_YEAR_AT_END = re.compile(r"\s*\((\d{4})?(?: film)?\)?\s*$")


@dataclass(slots=True)
class ReadReport:
    """What a reader met. `lines`: lines read; `skipped`: one message a skipped line, with file and
    line number; `noise`: known faults of a data set that were mended, by kind; `guessed`: what the
    files don't say and the reader settled by itself, by kind."""

    lines: int = 0
    skipped: list[str] = field(default_factory=list)
    noise: Counter[str] = field(default_factory=Counter)
    guessed: Counter[str] = field(default_factory=Counter)


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of `names` in `folder`, plain or with `.gz` added; None where none is there."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def need_file(folder: Path, *names: str) -> Path:
    """`find_file`, or FileNotFoundError."""
    path = find_file(folder, *names)
    if path is None:
        raise FileNotFoundError(
            f"load_dataset: {folder} must hold {' or '.join(names)}, plain or .gz (got neither)"
        )
    return path


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def read_text(path: Path) -> str:
    """A whole UTF-8 file, plain or gzipped."""
    with _open(path) as file:
        return file.read().decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """One JSON document, plain or gzipped; ValueError names the file."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"load_dataset: {path} must be JSON (got {error})") from error


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with _open(path) as file:
        number = 0
        try:
            for number, raw in enumerate(file, 1):
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(
                f"load_dataset: {path} must be a whole gzip file (got {error} after line {number})"
            ) from error


def read_lines(
    path: Path,
    parse: Callable[[str], T],
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> list[T]:
    """`parse` of every line that is not blank.

    Raises:
        ValueError: a broken line (not UTF-8, or `parse` fails), with file and line number, where
            `on_error` is "raise"; with "skip" the line is left out and noted in `report`.
    """
    report = ReadReport() if report is None else report
    parsed = []
    for number, raw in _numbered_lines(path):
        if not raw.strip():
            continue
        report.lines += 1
        try:
            parsed.append(parse(raw.decode("utf-8").rstrip("\r\n")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"no key {error}" if isinstance(error, KeyError) else str(error)
            message = f"load_dataset: {path}, line {number} must be readable: {why}"
            if on_error == "raise":
                raise ValueError(message) from error
            report.skipped.append(message)
    return parsed


def json_object(line: str) -> dict[str, Any]:
    """A line that must be one JSON object."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of a JSON object")
    return value


def split_title(name: str) -> tuple[str, int | None]:
    """`Title  (1999)` to ("Title", 1999); runs of spaces become one, no year gives None."""
    found = _YEAR_AT_END.search(name)
    if not found or not found.start():
        return " ".join(name.split()), None
    return " ".join(name[: found.start()].split()), int(found[1]) if found[1] else None


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


def _parse_item(line: str) -> Item:
    record = json_object(line)
    year = record.get("year")
    if year is not None and type(year) is not int:
        raise ValueError(f"year must be an integer or null (got {year!r})")
    imdb_id = None if record.get("imdb_id") is None else _string(record, "imdb_id")
    extra = {k: v for k, v in record.items() if k not in _ITEM_KEYS and v is not None}
    fields = {key: _field_text(key, value) for key, value in extra.items()}
    return Item(_string(record, "item_id"), _string(record, "title"), year, fields, imdb_id)


def read_items(
    path: str | Path, on_error: OnError = "raise", report: ReadReport | None = None
) -> tuple[Item, ...]:
    """Read an `items.jsonl` (this module's docstring has the format).

    Raises:
        ValueError: a broken line or an item_id given twice, unless `on_error` is "skip".
    """
    seen: set[str] = set()

    def parse(line: str) -> Item:
        item = _parse_item(line)
        if item.item_id in seen:
            raise ValueError(f"item_id must be given once (got {item.item_id!r} again)")
        seen.add(item.item_id)
        return item

    return tuple(read_lines(Path(path), parse, on_error, report))


def _parse_turn(record: dict[str, Any], known: Collection[str] | None) -> Turn:
    mentions = []
    for entry in record.get("items") or []:
        item_id, start, end = _string(entry, "item_id"), entry.get("start"), entry.get("end")
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


def read_dialogues(
    path: str | Path,
    items: Iterable[Item] | None = None,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> tuple[Dialogue, ...]:
    """Read a dialogues file (this module's docstring has the format).

    Args:
        path: the file.
        items: the catalogue; where given, a mention of anything else is a broken line.
        on_error: what to do with a broken line.
        report: filled in where given.

    Raises:
        ValueError: a broken line, with file and line number, unless `on_error` is "skip".
    """
    known = None if items is None else {item.item_id for item in items}

    def parse(line: str) -> Dialogue:
        record = json_object(line)
        turns = [_parse_turn(turn, known) for turn in record["turns"]]
        liked = _liked(record.get("liked") or {})
        seen = _strings(record, "seen")
        return Dialogue(_string(record, "dialogue_id"), merge_turns(turns), liked, seen)

    return tuple(read_lines(Path(path), parse, on_error, report))


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON document a line, the file whole or not at all."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_items(path: str | Path, items: Sequence[Item]) -> None:
    """Write an `items.jsonl` that `read_items` reads back equal.

    Raises:
        ValueError: a field is named item_id, title, year or imdb_id.
    """
    for item in items:
        if clash := [key for key in _ITEM_KEYS if key in item.fields]:
            raise ValueError(f"write_items: fields must not be named {clash[0]!r} ({item.item_id})")
    write_lines(path, map(_item_record, items))


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
    """Write a dialogues file that `read_dialogues` reads back equal."""
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
