"""A worker: reads names of rows, one a line, and writes what happened, one JSON line a row.

It says which row it begins, so that the one that kills it is known.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import torch

from .rows import ROWS
from .table import ERROR, META, Row

_KINDS = (ValueError, TypeError, KeyError, FileNotFoundError)


def outcome(row: Row) -> tuple[str, str]:
    """One of "ok", "wrong", "accepted", "refused", "unclear"; and the details."""
    try:
        result = row.call()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if row.verdict != ERROR:
            return "refused", text
        return ("ok" if is_clear(row, error) else "unclear"), text
    if row.verdict == ERROR:
        return "accepted", repr(result)[:200]
    if row.verdict == META:
        tensors = [t for t in _flat(result) if isinstance(t, torch.Tensor)]
        return ("ok" if tensors and all(t.is_meta for t in tensors) else "wrong"), repr(result)[
            :200
        ]
    assert row.expected is not None
    expected = row.expected()
    if equal(result, expected):
        return "ok", ""
    return "wrong", f"{result!r:.300} instead of {expected!r:.300}"


def is_clear(row: Row, error: Exception) -> bool:
    """Whether it says which argument, what it must be and what it got."""
    text = str(error)
    if isinstance(error, KeyError):
        return "no item " in text or "item ids are " in text
    if isinstance(error, FileNotFoundError):
        return "no file " in text or (" must " in text and "got " in text)
    named = any(name in text for name in row.names)
    return isinstance(error, _KINDS) and named and "got " in text and "must " in text


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for one in value for leaf in _flat(one)]
    return [value]


def equal(a: Any, b: Any) -> bool:
    a, b = _flat(a), _flat(b)
    return len(a) == len(b) and all(map(_equal, a, b))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)  # kernels' threads take part
    rows = {row.name: row for row in ROWS}
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        name = json.loads(line)
        print(json.dumps([name, "begun", ""]), file=out, flush=True)
        if name == "crash":  # of the pool's own test
            os.abort()
        print(json.dumps([name, *outcome(rows[name])]), file=out, flush=True)


main()
