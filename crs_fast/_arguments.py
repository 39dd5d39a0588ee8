"""Checks of arguments and settings, before any work is done with them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from operator import index
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def _anything(value: Any) -> bool:
    return True


class Rule(NamedTuple):
    """What settings must be.

    names: of the settings, separated by spaces
    kind: int, float (which takes integers too), bool or str
    expected: the range in words
    allows: whether a value of this kind is in the range
    optional: whether None is right too
    """

    names: str
    kind: type
    expected: str = ""
    allows: Callable[[Any], bool] = _anything
    optional: bool = False


def at_least(least: int) -> tuple[str, Callable[[Any], bool]]:
    """The range of a rule, in words and as a test."""
    return f"at least {least}", lambda value: value >= least


def check_settings(settings: Any, rules: Iterable[Rule]) -> None:
    """Check the attributes of an object of settings, and turn numpy's numbers into Python's, which
    can be written as JSON.

    Raises:
        ValueError: one of them is of another kind or out of range.
    """
    for rule in rules:
        for name in rule.names.split():
            value = checked(f"{type(settings).__name__}: {name}", getattr(settings, name), rule)
            object.__setattr__(settings, name, value)  # settings may be frozen


def check_arguments(op: str, rules: Iterable[Rule], **values: Any) -> None:
    """
    Raises:
        ValueError: an argument of `op` is of another kind or out of range.
    """
    for rule in rules:
        for name in rule.names.split():
            checked(f"{op}: {name}", values[name], rule)


def checked(what: str, value: Any, rule: Rule) -> Any:
    """The value as a Python value.

    Raises:
        ValueError: it breaks the rule.
    """
    if value is None and rule.optional:
        return None
    result = plain(value, rule.kind)
    if result is None:
        or_none = " or None" if rule.optional else ""
        raise ValueError(f"{what} must be {_KINDS[rule.kind]}{or_none} (got {_shown(value)})")
    if not rule.allows(result):
        raise ValueError(f"{what} must be {rule.expected} (got {_shown(value)})")
    return result


def plain(value: Any, kind: type) -> Any:
    """The value as `kind`, None where it is no such thing."""
    if kind is str:
        return value if isinstance(value, str) else None
    is_flag = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's too
    if kind is bool:
        return bool(value) if is_flag or (isinstance(value, Integral) and value in (0, 1)) else None
    if is_flag:
        return None
    if kind is float and isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    try:
        return index(value)
    except TypeError:
        return None


def finite(allows: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The test of a range without infinity."""
    return lambda value: math.isfinite(value) and allows(value)


def check_kind(what: str, value: Any, kind: Any, expected: str) -> None:
    """
    Raises:
        ValueError: the value is no instance of `kind`, which `expected` names.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be {expected} (got {_shown(value)})")


def all_of_kind(what: str, values: Iterable[T], kind: type[T], expected: str) -> tuple[T, ...]:
    """`values`, all of them of one kind, as a tuple. Strings and mappings are no lists of values.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        raise ValueError(f"{what} must be {expected} (got {_shown(values)})")
    made = tuple(values)
    for one in made:
        if not isinstance(one, kind):
            raise ValueError(f"{what} must be {expected} (got {_shown(one)} among them)")
    return made


def is_integer(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer, of Python's or numpy's kinds, and at least `least`."""
    number = plain(value, int)
    return number is not None and (least is None or number >= least)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python's or numpy's kinds."""
    number = plain(value, float)
    return number is not None and math.isfinite(number)


def check_path(what: str, value: Any) -> None:
    """
    Raises:
        ValueError: the value is no path.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{what} must be a path, not empty (got {_shown(value)})")
    if "\0" in os.fsdecode(value):
        raise ValueError(f"{what} must be a path without zero bytes (got {_shown(value)})")


def check_device(what: str, value: Any) -> None:
    """
    Raises:
        ValueError: the value is no device of torch, and not None.
    """
    import torch

    try:
        if value is not None:
            torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{what} must be a device of torch or None (got {_shown(value)}: {error})"
        ) from None


def _shown(value: Any) -> str:
    """A value in an error's text: whole where it is short, else by its type."""
    if value is None or isinstance(value, bool | int | float | str | tuple | list):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}…"
    shape = getattr(value, "shape", None)
    of_shape = "" if shape is None else f" of shape {tuple(shape)}"
    return f"{type(value).__name__}{of_shape}"
