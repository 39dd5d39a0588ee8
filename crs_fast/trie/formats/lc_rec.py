"""Index files of LC-Rec and MiniOneRec: `index.json`, and `info.txt` with titles.

index.json   {"0": ["<a_236>", "<b_231>", "<c_226>"], …}     item -> one token per level
info.txt     <a_236><b_231><c_226> TAB title TAB item        one line per item
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crs_fast._files import write_text

from .naming import LevelNames, names_of_tokens
from .rows import MOST_CODES, Rows, broken, check_distinct, item_number_or_text, sid_rows
from .texts import lines, read_json

_BREAK = re.compile(r"[\t\r\n]")
_TOKEN = re.compile(r"<[^<>]+>")


def read_index(path: Path) -> Rows:
    index = read_json(path)
    for item, tokens in index.items():
        if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise broken(
                path, f"must hold a list of tokens for every item (got {tokens!r} for {item!r})"
            )
    return _rows(path, list(index), list(index.values()))


def read_info(path: Path) -> Rows:
    items, rows = [], []
    for number, line in lines(path):
        sid, tab, rest = line.partition("\t")
        _, second_tab, item = rest.rpartition("\t")
        tokens = _TOKEN.findall(sid)
        if not (tab and second_tab and item.strip()) or "".join(tokens) != sid.strip():
            raise broken(path, f"line {number} must be SID, title and item id (got {line[:80]!r})")
        items.append(item.strip())
        rows.append(tokens)
    return _rows(path, items, rows)


def _rows(path: Path, items: Sequence[str], tokens: Sequence[Sequence[str]]) -> Rows:
    item_ids = item_number_or_text(items)
    check_distinct(path, item_ids)
    names, codes_of = [], []
    for level in range(max(map(len, tokens), default=0)):
        of_level = sorted({row[level] for row in tokens if level < len(row)})
        named, codes = names_of_tokens(of_level)
        _check_level(path, items, tokens, level, named)
        if max(codes.values()) >= MOST_CODES:
            raise broken(
                path,
                f"must number the tokens of a level below {MOST_CODES} "
                f"(got {max(codes, key=lambda token: codes[token])!r})",
            )
        names.append(named)
        codes_of.append(codes)
    sids = [[codes[token] for codes, token in zip(codes_of, row, strict=False)] for row in tokens]
    return Rows(sid_rows(path, sids, items), item_ids, names)


def _check_level(
    path: Path,
    items: Sequence[str],
    tokens: Sequence[Sequence[str]],
    level: int,
    named: LevelNames,
) -> None:
    """
    Raises:
        ValueError: tokens such as `<a_1>` and `<b_1>` on one level: an item lost or gained a level.
    """
    if named.listed is None:
        return
    first: dict[str, str] = {}  # text before the number -> the first token with it
    for item, row in zip(items, tokens, strict=True):
        match = re.fullmatch(r"(<[a-z_]*[a-z]_)[0-9]+>", row[level]) if level < len(row) else None
        if match is None:
            continue
        first.setdefault(match[1], row[level])
        if len(first) > 1:
            raise broken(
                path,
                f"must hold tokens of one kind at level {level} (got {row[level]!r} of item "
                f"{item!r} beside {next(iter(first.values()))!r})",
            )


def write_index(path: Path, item_ids: Sequence[Any], tokens: Sequence[Sequence[str]]) -> None:
    index = {str(item): list(row) for item, row in zip(item_ids, tokens, strict=True)}
    write_text(path, json.dumps(index, ensure_ascii=False))


def write_info(
    path: Path,
    item_ids: Sequence[Any],
    tokens: Sequence[Sequence[str]],
    titles: Mapping[Any, str],
) -> None:
    lacking = [item for item in item_ids if item not in titles]
    if lacking:
        raise ValueError(
            f"SidIndex.save: titles must have one per item (got none for {lacking[0]!r})"
        )
    rows = (
        f"{''.join(row)}\t{_BREAK.sub(' ', titles[item])}\t{item}\n"
        for item, row in zip(item_ids, tokens, strict=True)
    )
    write_text(path, "".join(rows))
