"""Readers: ReDial, INSPIRED, the starter data and the package's own format, all to one type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.data.inspired import load_inspired
from crs_fast.crs.data.inspired2 import with_corrected_labels
from crs_fast.crs.data.jsonl import (
    load_folder,
    read_dialogues,
    read_items,
    write_dialogues,
    write_items,
)
from crs_fast.crs.data.lines import OnError, ReadReport, find_file
from crs_fast.crs.data.redial import load_redial
from crs_fast.crs.data.tables import items_from, load_tables
from crs_fast.crs.data.unicrs import load_unicrs, processed_files

__all__ = [
    "ReadReport",
    "items_from",
    "load_dataset",
    "located_share",
    "read_dialogues",
    "read_items",
    "write_dialogues",
    "write_items",
]


def load_dataset(
    name_or_path: str | Path | Mapping[str, Any],
    root: str | Path | None = None,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> CrsDataset:
    """Read a data set.

    Args:
        name_or_path: "redial" or "inspired" (the folder of that name under `root`; ReDial's turns
            have intents where `iard/` is there too, and INSPIRED's have corrected labels where
            `inspired2/` is), "starter" (the simulated data inside the
            package), or a folder in the package's own format (see
            `crs_fast.crs.data.jsonl`) or of the UniCRS family's rows, `*_data_processed.jsonl`
            (see `crs_fast.crs.data.unicrs`); or a table of rows for each of "items", "train",
            "valid" and "test" (pandas DataFrames, data sets of `datasets`, lists of dictionaries)
            with the package's own keys.
        root: parent folder of `redial/` and `inspired/`; the environment variable CRS_FAST_DATA
            where it is None.
        on_error: "raise" refuses a broken line, "skip" leaves it out.
        report: filled with lines read, lines skipped (file, line number, reason), noise mended and
            what was guessed.

    Raises:
        ValueError: a broken line (with "raise"), an unknown `on_error`, or no `root`.
        FileNotFoundError: the folder or one of its files is missing.
    """
    if on_error not in get_args(OnError):
        raise ValueError(
            f"load_dataset: on_error must be one of {get_args(OnError)} (got {on_error!r})"
        )
    if isinstance(name_or_path, Mapping):
        return load_tables(name_or_path, on_error, report)
    if name_or_path == "starter":
        from crs_fast.crs.data.starter import load_starter

        return load_starter()
    if name_or_path == "redial":
        return load_redial(_root(root) / "redial", _root(root) / "iard", on_error, report)
    if name_or_path == "inspired":
        inspired = load_inspired(
            _root(root) / "inspired", _root(root) / "redial", on_error=on_error, report=report
        )
        return with_corrected_labels(inspired, _root(root) / "inspired2", on_error)
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise FileNotFoundError(
            "load_dataset: name_or_path must be 'redial', 'inspired', 'starter' or a folder "
            f"(got {str(name_or_path)!r})"
        )
    if processed_files(folder) and find_file(folder, "items.jsonl") is None:
        return load_unicrs(folder, on_error, report)
    return load_folder(folder, on_error, report)


def _root(root: str | Path | None) -> Path:
    root = os.environ.get("CRS_FAST_DATA") if root is None else root
    if not root:
        raise ValueError(
            "load_dataset: root must be the folder that holds redial/ and inspired/, or the "
            "environment variable CRS_FAST_DATA set (got neither)"
        )
    return Path(root)


def located_share(dialogues: Iterable[Dialogue]) -> float:
    """Share of mentions whose place in the text is known, in [0, 1]; 1.0 where there are none."""
    located = [m.located for d in dialogues for turn in d.turns for m in turn.mentions]
    return sum(located) / len(located) if located else 1.0
