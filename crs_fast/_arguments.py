"""Checks of the kinds of values that callers give, with errors that name the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def check_kind(what: str, value: Any, kind: Any, must_be: str) -> None:
    """
    Raises:
        ValueError: `value` is of another kind than `kind`, which is a type or several joined by
            `|`. `what` names the argument in the error's text, and `must_be` says what is right.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be {must_be} (got {type(value).__name__})")


def all_of_kind(what: str, values: Iterable[T], kind: type[T], must_be: str) -> tuple[T, ...]:
    """`values`, all of them of one kind, as a tuple. Strings and mappings are no lists of values.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        raise ValueError(f"{what} must be {must_be} (got {type(values).__name__})")
    made = tuple(values)
    for one in made:
        if not isinstance(one, kind):
            raise ValueError(f"{what} must be {must_be} (got {type(one).__name__} among them)")
    return made


def is_integer(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer, of Python's or numpy's kinds, and at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return False
    return least is None or bool(value >= least)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python's or numpy's kinds."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        return False
    return math.isfinite(value)


def check_path(what: str, path: Any) -> None:
    """
    Raises:
        ValueError: `path` is no path.
    """
    if not (isinstance(path, Path) or (isinstance(path, str) and path)):
        raise ValueError(f"{what} must be a path (got {path!r})")
