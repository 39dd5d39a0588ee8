"""Items and dialogues in parquet files: the keys of a line of JSON are the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from crs_fast.crs.data.dialogue import Dialogue, Item
from crs_fast.crs.data.jsonl import dialogue_parser, item_of
from crs_fast.crs.data.lines import Once, data_line
from crs_fast.crs.data.tables import rows_of

T = TypeVar("T")

_BATCH = 1024  # rows that are Python's own values at a time


def need_pyarrow(op: str) -> Any:
    """The module that reads and writes parquet files.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{op}: .parquet needs `pip install pyarrow` (the extra parquet)", name="pyarrow"
        ) from error
    return parquet


def read_parquet_items(op: str, path: Path) -> tuple[Item, ...]:
    """The items of a file.

    Raises:
        ValueError: it is no parquet file, or a row is broken or repeats an item_id.
    """
    ids = Once("item_id")

    def parse(number: int, row: dict[str, Any]) -> Item:
        item = item_of(row)
        ids.check(item.item_id)
        return item

    return _parsed(op, path, parse)


def read_parquet_dialogues(
    op: str, path: Path, items: Iterable[Item] | None = None
) -> tuple[Dialogue, ...]:
    """The dialogues of a file, as `read_dialogues` reads the same rows from lines of JSON.

    `turns` and `messages` are lists of structs, `liked` is a map or a struct, `seen` a list. Each
    may be text in JSON instead. What is null counts as absent.

    Raises:
        ValueError: it is no parquet file, or a row is broken.
    """
    parse = dialogue_parser(path, items)
    return _parsed(op, path, lambda number, row: parse(number, _from_cells(row)))


def _parsed(op: str, path: Path, parse: Callable[[int, dict[str, Any]], T]) -> tuple[T, ...]:
    """What `parse` makes of a file's rows, which are numbered from 1."""
    parsed = []
    for number, row in enumerate(rows_of(_rows(op, path)), 1):
        try:
            parsed.append(parse(number, row))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{op}: {path.name}, row {number} must be readable: {why}") from error
    return tuple(parsed)


def _rows(op: str, path: Path) -> Iterator[dict[str, Any]]:
    parquet = need_pyarrow(op)
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"{op}: {path.name} must be a parquet file (got {error})") from error


def _from_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of columns with the values that a line of JSON has."""
    for key in ("turns", "messages", "seen", "liked"):
        if isinstance(row.get(key), str):
            row[key] = data_line(row[key])
    if isinstance(row.get("liked"), list):  # the pairs of a map
        row["liked"] = {str(key): value for key, value in row["liked"] if value is not None}
    if isinstance(row.get("seen"), list):
        row["seen"] = [value for value in row["seen"] if value is not None]
    return row
