"""INSPIRED (Hayati et al., EMNLP 2020): movies, English; https://github.com/sweetpeach/Inspired.

Reads, for each split, either one dialogue a line (`dev.jsonl`: a JSON list of turns with `text`,
`role` and `movie`, as UniCRS publishes it) or the authors' own table (`dev.tsv` or `raw_dev.tsv`:
one utterance a row, header in the first line). Every file may be gzipped. `dev` is our "valid".
The two are not one: the table holds a few more tags (dev 321 targets where the JSON lines have the
309 of the standard count), so say which was read. Its strategies (`expert_label`) are the intents
of recommender turns, also of the JSON lines' where both are there.

A turn's tags are its mentions: each is looked for in the text (`locate_items`), and one that is
not found stays a mention without a place. The tags were made by automatic title matching and many
are false ("Yeah Sir!" gives `Sir (2018)`); they stay, because the standard count holds them.
The catalogue is every tag of all splits, sorted; an item's id is its tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crs_fast.crs.data.dialogue import OTHER, ROLES, CrsDataset, Dialogue, Item, Turn, merge_turns
from crs_fast.crs.data.entity_spans import locate_items
from crs_fast.crs.data.intents import with_intents
from crs_fast.crs.data.lines import (
    Once,
    OnError,
    ReadReport,
    by_number,
    data_line,
    find_file,
    need_file,
    read_info,
    read_lines,
    split_title,
)
from crs_fast.crs.data.redial import info_fields

_SPLITS = {"train": "train", "dev": "valid", "test": "test"}
# How the table writes quotation marks, and what is left of characters its makers lost.
_QUOTE, _LOST = "QUOTATION_MARK", "\ufffd"
_COLUMNS = ("dialog_id", "speaker", "text", "movies")
# Two tags in one string, "A (2006), B (2019)": a fault of the JSON lines.
_JOINED = re.compile(r"(?<=\)),\s*")


@dataclass(frozen=True, slots=True)
class RawTurn:
    """An utterance or a turn as the files have it."""

    role: str
    text: str
    tags: tuple[str, ...]
    intent: str | None = None


RawDialogue = tuple[str, list[RawTurn]]


def _raw_turn(
    role: str, text: Any, tags: Sequence[str], report: ReadReport, intent: str | None = None
) -> RawTurn:
    if role.lower() not in ROLES or not isinstance(text, str):
        raise ValueError(f"a turn with role {role!r} and text {text!r}")
    return RawTurn(role.lower(), text, _clean_tags(tags, report), intent)


def _clean_tags(tags: Sequence[str], report: ReadReport) -> tuple[str, ...]:
    clean: list[str] = []
    for tag in tags:
        parts = [part for part in (p.strip() for p in _JOINED.split(tag)) if part]
        if not parts:
            report.noise["empty tag, dropped"] += 1
        elif len(parts) > 1:
            report.noise["joined tags, split"] += 1
        clean += parts
    return tuple(clean)


def _read_json_lines(
    path: Path, split: str, on_error: OnError, report: ReadReport
) -> list[RawDialogue]:
    def parse(line: str) -> list[RawTurn]:
        turns = data_line(line, report)
        if not isinstance(turns, list):
            raise ValueError(f"a {type(turns).__name__} instead of a list of turns")
        return [_raw_turn(t["role"], t["text"], t.get("movie") or [], report) for t in turns]

    dialogues = read_lines(path, parse, on_error, report)
    return [(f"{split}-{number}", turns) for number, turns in enumerate(dialogues)]


def _mend(text: str, report: ReadReport) -> str:
    for fault, kind in ((_QUOTE, "QUOTATION_MARK, mended"), (_LOST, "lost characters, dropped")):
        if fault in text:
            report.noise[kind] += 1
    return " ".join(text.replace(_QUOTE, '"').replace(_LOST, "").split())


class _Runs(Once):
    """Ids whose rows must stand together: an id that comes back is of another dialogue."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._last: str | None = None

    def check(self, value: str) -> str:
        if value != self._last:
            super().check(value)
        self._last = value
        return value


def read_table(path: Path, split: str, on_error: OnError, report: ReadReport) -> list[RawDialogue]:
    """The authors' table: dialogue ids, and the utterances of each with their tags."""
    header: list[str] = []
    ids = _Runs("dialog_id")

    def parse(line: str) -> tuple[str, RawTurn] | None:
        cells = line.split("\t")
        if not header:
            if missing := [name for name in _COLUMNS if name not in cells]:
                raise ValueError(f"a header without {', '.join(missing)}")
            header.extend(cells)
            return None
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        ids.check(row["dialog_id"])
        tags = row["movies"].split(";") if row["movies"] else []
        text = _mend(row["text"], report)
        strategy = row.get("expert_label") or None
        intent = OTHER if strategy == "no_strategy" else strategy
        return row["dialog_id"], _raw_turn(row["speaker"], text, tags, report, intent)

    dialogues: dict[str, list[RawTurn]] = {}
    for row in read_lines(path, parse, on_error, report):
        if row is not None:
            dialogues.setdefault(row[0], []).append(row[1])
    return list(dialogues.items())


def _read_split(
    folder: Path, name: str, on_error: OnError, report: ReadReport
) -> list[RawDialogue] | None:
    if path := find_file(folder, f"{name}.jsonl"):
        return _read_json_lines(path, name, on_error, report)
    if path := find_file(folder, f"{name}.tsv", f"raw_{name}.tsv"):
        return read_table(path, name, on_error, report)
    return None


def _facts_fields(facts: dict[str, Any] | None) -> dict[str, str]:
    """Text fields of a `movies.json` entry: genres, director (2), cast (4)."""
    facts = facts or {}
    info = {"genre": "genres", "director": "directors", "star": "casts"}
    return info_fields({name: facts.get(key) for name, key in info.items()})


def _plots(folder: Path | None) -> dict[str, str]:
    """Plot by exact title, from ReDial's `id2info.json` where it is there."""
    path = None if folder is None else find_file(folder, "id2info.json")
    if path is None:
        return {}
    plots: dict[str, str] = {}
    named = read_info(path, "name")
    for info in (named[key] for key in sorted(named, key=by_number)):
        if plot := info_fields(info).get("plot"):
            plots.setdefault(info["name"], plot)
    return plots


def _catalogue(tags: set[str], folder: Path, redial: Path | None) -> tuple[Item, ...]:
    path = find_file(folder, "movies.json")
    facts = {} if path is None else read_info(path)
    plots = _plots(redial)
    items = []
    for tag in sorted(tags):
        fields = _facts_fields(facts.get(tag))
        if tag in plots:
            fields["plot"] = plots[tag]
        items.append(Item(tag, *split_title(tag), fields))
    return tuple(items)


def _turn(raw: RawTurn, catalogue: dict[str, Item]) -> Turn:
    mentions = locate_items(raw.text, [catalogue[tag] for tag in raw.tags])
    return Turn(raw.role, raw.text, mentions, raw.intent)


def _strategies(folder: Path, name: str, on_error: OnError) -> list[list[Turn]]:
    """The turns of a split's table, without mentions; none without a table."""
    path = find_file(folder, f"{name}.tsv", f"raw_{name}.tsv")
    table = [] if path is None else read_table(path, name, on_error, ReadReport())
    return [[Turn(t.role, t.text, intent=t.intent) for t in turns] for _, turns in table]


def load_inspired(
    folder: Path,
    redial: Path | None = None,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> CrsDataset:
    """Read INSPIRED (this module's docstring says which files).

    Args:
        folder: the folder; splits whose file is missing are left out.
        redial: ReDial's folder, for plots; None or a missing folder gives none.
        on_error: what to do with a broken line (of a table: with that utterance).
        report: filled in where given.

    Raises:
        FileNotFoundError: no split is there.
        ValueError: a broken line, with file and line number, unless `on_error` is "skip".
    """
    report = ReadReport() if report is None else report
    found = {name: _read_split(folder, name, on_error, report) for name in _SPLITS}
    if all(dialogues is None for dialogues in found.values()):
        need_file(folder, *(f"{name}.{kind}" for name in _SPLITS for kind in ("jsonl", "tsv")))
    raw = {_SPLITS[name]: dialogues for name, dialogues in found.items() if dialogues is not None}
    tags = {tag for split in raw.values() for _, turns in split for t in turns for tag in t.tags}
    items = _catalogue(tags, folder, redial)
    to_turn: Callable[[RawTurn], Turn] = partial(
        _turn, catalogue={item.item_id: item for item in items}
    )
    splits = {
        split: tuple(
            Dialogue(name, merge_turns(list(map(to_turn, turns)))) for name, turns in pairs
        )
        for split, pairs in raw.items()
    }
    for name, split in _SPLITS.items():
        if split in splits and find_file(folder, f"{name}.jsonl"):
            splits[split] = with_intents(splits[split], _strategies(folder, name, on_error))
    return CrsDataset("inspired", items, splits)
