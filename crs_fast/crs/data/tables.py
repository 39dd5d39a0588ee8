"""Items and dialogues from tables of rows: pandas DataFrames, data sets of `datasets`, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from crs_fast._text import well_formed
from crs_fast.crs.data.dialogue import CrsDataset, Item, is_null
from crs_fast.crs.data.jsonl import SPLITS, dialogue_of, item_of
from crs_fast.crs.data.lines import Once, OnError, ReadReport

T = TypeVar("T")


def items_from(table: Any) -> tuple[Item, ...]:
    """The items of a table.

    Args:
        table: `Item`s, or rows with the keys of an items.jsonl (`item_id`, `title`, `year`, and
            text fields): a pandas DataFrame, a data set of `datasets`, an Arrow table, or any
            iterable of mappings. What is null counts as absent.

    Raises:
        ValueError: a row that is no item, with its number, or an item_id given twice.
    """
    return tuple(_parsed(table, "items", item_of, "item_id", "items_from"))


def load_tables(
    tables: Mapping[str, Any], on_error: OnError = "raise", report: ReadReport | None = None
) -> CrsDataset:
    """See `load_dataset`."""
    unknown = [name for name in tables if name not in ("items", *SPLITS)]
    if unknown or "items" not in tables or len(tables) < 2:
        raise ValueError(
            f"load_dataset: tables must be named 'items' and at least one of {SPLITS} "
            f"(got {list(tables)})"
        )
    read = partial(_parsed, op="load_dataset", on_error=on_error, report=report)
    items = tuple(read(tables["items"], "items", item_of, "item_id"))
    parse = partial(dialogue_of, known={item.item_id for item in items})
    splits = {
        split: tuple(read(tables[split], split, parse, "dialogue_id"))
        for split in SPLITS
        if split in tables
    }
    return CrsDataset("tables", items, splits)


def rows_of(table: Any) -> Iterator[Any]:
    """The rows of a table as plain dictionaries of Python's own values; a row that is no mapping
    stays what it is."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        table = table.to_dict("records")
    elif hasattr(table, "to_pylist"):
        table = table.to_pylist()
    for row in table:
        yield _plain(row)


def _parsed(
    table: Iterable[Any],
    name: str,
    parse: Callable[[dict[str, Any]], T],
    key: str,
    op: str,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> Iterator[T]:
    """`parse` of every row; one that is parsed already stays as it is."""
    report = ReadReport() if report is None else report
    ids = Once(key)
    for number, row in enumerate(rows_of(table)):
        report.lines += 1
        try:
            one = parse(row) if isinstance(row, dict) else row
            ids.check(getattr(one, key))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"no key {error}" if isinstance(error, KeyError) else str(error)
            message = f"{op}: row {number} of {name} must be readable: {why}"
            if on_error == "raise":
                raise ValueError(message) from error
            report.skipped.append(message)
            continue
        yield one


def _plain(value: Any) -> Any:
    """A cell's value without numpy's types; a null is None, and a null key is absent."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        plain = {str(key): _plain(part) for key, part in value.items()}
        return {key: part for key, part in plain.items() if part is not None}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if is_null(value) or type(value).__name__ in ("NAType", "NaTType") else value
