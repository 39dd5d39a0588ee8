"""Index files of text: opened, or refused with a clear reason."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from crs_fast._gzip import DAMAGED, UnpacksToTooMuchError, open_gzip

from .rows import broken

# Parsed at once, JSON takes about ten times its size in memory.
LARGEST_JSON = 2 << 30


def open_text(path: Path) -> TextIO:
    """A text file, packed by gzip where its name ends in `.gz`.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"load_index: no file {path}")
    if path.suffix == ".gz":
        return io.TextIOWrapper(open_gzip(path), encoding="utf-8")
    return path.open(encoding="utf-8")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbers, from 1, and texts of the lines that are not blank.

    Raises:
        ValueError: text that is not UTF-8, or a gzip file that is damaged, cut off, or unpacks to
            too much (see `open_gzip`).
    """
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, UnpacksToTooMuchError, *DAMAGED) as error:
        raise broken(path, f"is damaged or cut off ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ValueError: too large a file, one that is damaged or cut off, no object, or a key twice.
    """
    with open_text(path) as file:
        if path.stat().st_size > LARGEST_JSON:
            raise broken(
                path,
                f"must have at most {LARGEST_JSON >> 30} GiB, since JSON is parsed at once (got "
                f"{path.stat().st_size / (1 << 30):.1f}); save it as .jsonl or .npy",
            )
        try:
            parsed = json.load(file, object_pairs_hook=_without_repeats)
        except _RepeatedKey as error:
            raise broken(path, f"must name every key once (got {error.args[0]!r} twice)") from None
        except (ValueError, RecursionError, *DAMAGED) as error:
            raise broken(path, f"is no whole JSON file; it may be cut off ({error})") from None
    if not isinstance(parsed, dict):
        raise broken(path, f"must hold a JSON object (got {type(parsed).__name__})")
    if not parsed:
        raise broken(path, "must hold at least one item (got none)")
    return parsed


class _RepeatedKey(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)  # JSON's own rule would keep the last of two
    if len(made) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKey(key)
            seen.add(key)
    return made
