"""Catalogues of NVIDIA's SID-GR inference: one JSON object per line.

    {"item_id": "film 7", "token_ids": [151700, 151801, 151902], "metadata": {…}}

The codes are language-model token ids themselves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crs_fast._files import replacing

from .rows import Rows, broken, check_distinct, sid_rows
from .texts import lines


def read(path: Path) -> Rows:
    item_ids: list[int | str] = []
    rows: list[list[int]] = []
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise broken(
                path, f"line {number} is no JSON; the file may be cut off ({error})"
            ) from None
        if not isinstance(record, dict) or not {"item_id", "token_ids"} <= record.keys():
            raise broken(path, f"line {number} must have item_id and token_ids (got {line[:80]!r})")
        item, tokens = record["item_id"], record["token_ids"]
        if type(item) not in (int, str):
            raise broken(path, f"line {number} must have an int or str item_id (got {item!r})")
        if (
            not isinstance(tokens, list)
            or not tokens
            or not all(type(t) is int and t >= 0 for t in tokens)
        ):
            raise broken(
                path, f"line {number} must have token_ids, a list of token ids (got {tokens!r})"
            )
        item_ids.append(item)
        rows.append(tokens)
    check_distinct(path, item_ids)
    return Rows(sid_rows(path, rows, item_ids), item_ids, codes_are_tokens=True)


def write(path: Path, item_ids: Sequence[Any], token_ids: Sequence[Sequence[int]]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for item, tokens in zip(item_ids, token_ids, strict=True):
            record = {"item_id": item, "token_ids": [t for t in tokens if t >= 0], "metadata": {}}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
