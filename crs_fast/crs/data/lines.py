"""Lines and JSON values of data files, read with file and line number and written whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from crs_fast._arguments import check_kind, check_path
from crs_fast._files import replacing
from crs_fast._gzip import DAMAGED, UnpacksToTooMuchError, open_gzip
from crs_fast._text import well_formed

T = TypeVar("T")
OnError = Literal["raise", "skip"]
LONGEST_LINE = 16 << 20  # bytes
_HALF = "\\ud"  # how JSON may write half of a surrogate pair
LOST_HALF = "half of a surrogate pair, replaced"
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


def check_reading(op: str, path: Any, on_error: Any, report: Any) -> None:
    """Look at what a reader of one file is given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no path, a folder, an unknown `on_error`, or no report.
    """
    check_path(f"{op}: path", path)
    if on_error not in get_args(OnError):
        raise ValueError(f"{op}: on_error must be one of {get_args(OnError)} (got {on_error!r})")
    if report is not None:
        check_kind(f"{op}: report", report, ReadReport, "a ReadReport or None")
    if Path(path).is_dir():
        raise ValueError(f"{op}: path must be a file (got the folder {str(path)!r})")
    if not Path(path).exists():
        raise FileNotFoundError(f"{op}: no file {path}")


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
    return open_gzip(path) if path.suffix == ".gz" else open(path, "rb")


def read_text(path: Path) -> str:
    """A whole UTF-8 file, plain or gzipped.

    Raises:
        ValueError: it is not UTF-8, with the line number, or no whole gzip file.
    """
    try:
        with _open(path) as file:
            raw = file.read()
    except (*DAMAGED, UnpacksToTooMuchError) as error:
        raise _not_whole(path, error) from error
    try:
        text: str = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"load_dataset: {path}, line {line} must be UTF-8 (got byte 0x{raw[error.start]:02x})"
        ) from None
    return text


def read_json(path: Path) -> Any:
    """One JSON document, plain or gzipped; ValueError names the file."""
    text = read_text(path)
    try:
        return _well_formed(json.loads(text)) if _HALF in text.lower() else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load_dataset: {path} must be JSON (got {error})") from error


_LISTS = ("genre", "director", "star", "actor", "directors", "casts")
_TEXTS = ("name", "plot", "imdb_id")


def read_info(path: Path, required: str | None = None) -> dict[str, dict[str, Any]]:
    """The texts of items: a JSON object with one for each item, of which `required` is a key.

    Raises:
        ValueError: the file holds something else, or a text is none; it names the file.
    """
    info = read_json(path)
    if not isinstance(info, dict):
        raise ValueError(f"load_dataset: {path} must hold a JSON object (got {info!r:.200})")
    for key, facts in info.items():
        if facts is None and required is None:
            continue
        if not isinstance(facts, dict) or (required is not None and not facts.get(required)):
            what = "an object" if required is None else f"an object with {required!r}"
            raise ValueError(
                f"load_dataset: {path} must hold {what} for {key!r} (got {facts!r:.200})"
            )
        for name, value in facts.items():
            is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
            if value and (
                (name in _LISTS and not is_list) or (name in _TEXTS and not isinstance(value, str))
            ):
                kind = "a list of strings" if name in _LISTS else "a string"
                raise ValueError(
                    f"load_dataset: {path}: {name} of {key!r} must be {kind} (got {value!r:.200})"
                )
    return info


def by_number(text: str) -> tuple[bool, int, str, str]:
    """A key that sorts digits as numbers, however long, and before other texts."""
    is_number = text.isascii() and text.isdigit()
    digits = text.lstrip("0") if is_number else ""
    return (not is_number, len(digits), digits, text)


def _not_whole(path: Path, error: Exception, line: int | None = None) -> ValueError:
    after = "" if line is None else f" after line {line}"
    return ValueError(f"load_dataset: {path} must be a whole gzip file (got {error}{after})")


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, from 1. Of one that is longer than `LONGEST_LINE` so much comes as is
    needed to see that, and the rest is passed over."""
    with _open(path) as file:
        number = 0
        try:
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                while len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
                    raw = file.readline(LONGEST_LINE + 1)
        except (*DAMAGED, UnpacksToTooMuchError) as error:
            raise _not_whole(path, error, number) from error


def read_lines(
    path: Path,
    parse: Callable[[str], T],
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> list[T]:
    """`parse` of every line that is not blank.

    Raises:
        ValueError: a broken line (not UTF-8, longer than `LONGEST_LINE`, nested too deeply, or
            `parse` fails), with file and line number, where `on_error` is "raise"; with "skip" the
            line is left out and noted in `report`. In any case, a gzip file that is damaged or
            unpacks to too much (see `open_gzip`).
    """
    report = ReadReport() if report is None else report
    parsed = []
    for number, raw in _numbered_lines(path):
        if not raw.strip():
            continue
        report.lines += 1
        try:
            if len(raw) > LONGEST_LINE:
                raise ValueError(f"it is longer than {LONGEST_LINE >> 20} MiB")
            parsed.append(parse(raw.decode("utf-8").rstrip("\r\n")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"no key {error}" if isinstance(error, KeyError) else str(error)
            message = f"load_dataset: {path}, line {number} must be readable: {why}"
            if on_error == "raise":
                raise ValueError(message) from error
            report.skipped.append(message)
    return parsed


def json_object(line: str) -> dict[str, Any]:
    """A line that must be one JSON object."""
    return _object(json.loads(line))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of a JSON object")
    return value


def data_line(line: str, report: ReadReport | None = None) -> Any:
    """A line of data as JSON, with what this module's docstring says of NaN and surrogates."""
    value = json.loads(line, parse_constant=_constant)
    if _HALF not in line.lower():
        return value
    mended = _well_formed(value)
    if report is not None and mended != value:
        report.noise[LOST_HALF] += 1
    return mended


def data_object(line: str, report: ReadReport | None = None) -> dict[str, Any]:
    """`data_line` of a line that must be one JSON object."""
    return _object(data_line(line, report))


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"every number must be finite (got {name})")


def _well_formed(value: Any) -> Any:
    """A JSON value with `well_formed` texts."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_well_formed(part) for part in value]
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(part) for key, part in value.items()}
    return value


class Once:
    """Ids that a file may give once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: set[str] = set()

    def check(self, value: str) -> str:
        """
        Raises:
            ValueError: the id was given before.
        """
        if value in self._seen:
            raise ValueError(f"{self.name} must be given once (got {value!r} again)")
        self._seen.add(value)
        return value


def split_title(name: str) -> tuple[str, int | None]:
    """`Title  (1999)` to ("Title", 1999); runs of spaces become one, no year gives None."""
    found = _YEAR_AT_END.search(name)
    if not found or not found.start():
        return " ".join(name.split()), None
    return " ".join(name[: found.start()].split()), int(found[1]) if found[1] else None


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON document a line, the file whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False) + "\n"
            file.write(line.encode(errors="backslashreplace"))  # half a surrogate pair as in JSON
