"""Index files keyed by SIDs: RecIF's and OpenOneRec's `sid2pid.json`, FlashRec's catalogues.

sid2pid.json   {"8454660": [{"pid": 17, "count": 3, …}, …], …}   key (a · 8192 + b) · 8192 + c
dotted keys    {"0.1032.516": [{"pid": 17, …}], …}               more than four levels, too
FlashRec       {"0,1032,516,1": 1, …}                            no items; the last 1 is the end
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import write_text

from .naming import ONE_REC
from .rows import Rows, broken, check_distinct, sid_rows
from .texts import read_json

BASE = 8192
_LEVELS = 3  # at least; FlashRec packs more where a key is too high for three
_MOST_PACKED = 4  # levels that 63 bits hold
_ITEM_FIELDS = ("pid", "iid")  # of videos and adverts, and of products


def read(path: Path) -> Rows:
    mapping = read_json(path)
    sids = _sids(path, list(mapping))
    if all(value == 1 and not isinstance(value, list) for value in mapping.values()):
        item_ids: Sequence[Any] = [",".join(map(str, sid)) for sid in sids]
        rows = sids
    else:
        rows, item_ids = [], []
        for (key, value), sid in zip(mapping.items(), sids, strict=True):
            of_sid = _items(path, key, value)
            rows += [sid] * len(of_sid)
            item_ids += of_sid
    check_distinct(path, item_ids)
    tensor = sid_rows(path, rows, item_ids)
    return Rows(tensor, item_ids, ONE_REC.levels(tensor.shape[1]))


def _items(path: Path, key: str, value: Any) -> list[int | str]:
    """The items of one SID, the most frequent first, as in the file."""
    entries = value if isinstance(value, list) else [value]
    items: list[Any] = [
        next((entry[name] for name in _ITEM_FIELDS if name in entry), None)
        if isinstance(entry, dict)
        else entry
        for entry in entries
    ]
    if not items or not all(isinstance(i, (int, str)) and not isinstance(i, bool) for i in items):
        raise broken(path, f"must list items with a pid or an iid (got {value!r} for SID {key!r})")
    return items


def _sids(path: Path, keys: list[str]) -> list[Sequence[int]]:
    """The codes that each key names."""
    mark = next((mark for mark in ",." if mark in keys[0]), None)
    if mark is None:
        return _unpacked(path, keys)
    rows: list[Sequence[int]] = []
    for key in keys:
        parts = [part.strip() for part in key.split(mark)]
        if not all(part.isdecimal() for part in parts):
            raise broken(path, f"must have keys of codes with {mark!r} between (got {key!r})")
        rows.append([int(part) for part in parts])
    if len({len(row) for row in rows}) > 1:
        raise broken(path, f"must have one number of codes in every key (got {keys[:2]} …)")
    if mark == "," and len(rows[0]) > _LEVELS and all(row[-1] == 1 for row in rows):
        rows = [row[:-1] for row in rows]  # the end token, written as a level of its own
    return rows


def _unpacked(path: Path, keys: list[str]) -> list[Sequence[int]]:
    bad = next((key for key in keys if not key.isdecimal()), None)
    if bad is not None:
        raise broken(path, f"must have numbers, 'a,b,c' or 'a.b.c' as keys (got {bad!r})")
    packed = [int(key) for key in keys]
    levels = _LEVELS
    while max(packed) >= BASE**levels:
        levels += 1
    if levels > _MOST_PACKED:
        raise broken(
            path,
            f"must pack at most {_MOST_PACKED} codes of {BASE} into a key (got {max(packed)}); "
            "write keys as 'a,b,c'",
        )
    numbers = torch.tensor(packed, device="cpu")
    codes = [numbers // BASE**level % BASE for level in reversed(range(levels))]
    return torch.stack(codes, 1).tolist()


def write_sid2pid(path: Path, sids: torch.Tensor, item_ids: Sequence[Any]) -> None:
    _check_whole(path, sids)
    if sids.shape[1] < _LEVELS or sids.shape[1] > _MOST_PACKED or int(sids.max()) >= BASE:
        raise broken(
            path,
            f"takes {_LEVELS} or {_MOST_PACKED} levels of codes below {BASE} (got "
            f"{sids.shape[1]} levels up to {int(sids.max())})",
            "SidIndex.save",
        )
    powers = BASE ** torch.arange(sids.shape[1] - 1, -1, -1, device="cpu")
    mapping: dict[str, list[dict[str, Any]]] = {}
    for key, item in zip((sids * powers).sum(1).tolist(), item_ids, strict=True):
        mapping.setdefault(str(key), []).append({"pid": item})
    write_text(path, json.dumps(mapping))


def write_flashrec(path: Path, sids: torch.Tensor) -> None:
    """Items are not kept: the format has SIDs only."""
    _check_whole(path, sids)
    keys = dict.fromkeys(",".join(map(str, [*sid, 1])) for sid in sids.tolist())
    write_text(path, json.dumps(dict.fromkeys(keys, 1), separators=(",", ":")))


def _check_whole(path: Path, sids: torch.Tensor) -> None:
    if bool((sids < 0).any()):
        raise broken(path, "takes SIDs of one length (got shorter ones)", "SidIndex.save")
