"""How rows of the bad-input table are declared: a call that is right, and one thing changed in it.

A row's verdict is what must happen:

    error      one ValueError, TypeError or KeyError that names the argument, what it must be and
               what it got
    same       the result of the right call: the change is one of layout only
    reference  the result of the op's reference, or of `expected`, on the changed arguments
    meta       meta tensors: shapes without values
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

ERROR, SAME, REFERENCE, META = "error", "same", "reference", "meta"
DTYPES = (
    torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """name: "op/argument/what is changed"
    call: runs the changed call
    names: of which the error's text must have one
    """

    name: str
    verdict: str
    names: tuple[str, ...]
    call: Callable[[], Any]
    expected: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Change:
    """`make` takes the right value of an argument and returns the changed one. `expected`, of the
    changed arguments, stands in for the op's reference."""

    label: str
    verdict: str
    make: Callable[[Any], Any]
    expected: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Call:
    """A call that is right.

    arguments: makes them, fresh for each row
    reference: takes them too
    changes: of each argument
    aliases: other words for an argument in an error's text
    """

    op: str
    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    changes: Mapping[str, Sequence[Change]]
    reference: Callable[..., Any] | None = None
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        for name, changes in self.changes.items():
            for change in changes:
                yield self._row(name, change)

    def _row(self, name: str, change: Change) -> Row:
        def changed() -> dict[str, Any]:
            arguments = self.arguments()
            return {**arguments, name: change.make(arguments.get(name))}

        expected: Callable[[], Any] | None = None
        if change.verdict == SAME:
            expected = lambda: self.function(**self.arguments())  # noqa: E731
        elif change.verdict == REFERENCE:
            oracle = change.expected or self.reference
            assert oracle is not None
            expected = lambda: oracle(**changed())  # noqa: E731
        return Row(
            f"{self.op}/{name}/{change.label}",
            change.verdict,
            (name, *self.aliases.get(name, ())),
            lambda: self.function(**changed()),
            expected,
        )


def tensor_changes(
    dtypes: Sequence[torch.dtype], *, takes_lists: bool = False, moves: bool = False
) -> list[Change]:
    """What any tensor argument can be wrong in.

    Args:
        dtypes: those that are right.
        takes_lists: whether lists and arrays are right.
        moves: whether a tensor may have another device and number of axes than the others.
    """
    changes = [
        Change(f"dtype {str(dtype).removeprefix('torch.')}", ERROR, lambda t, d=dtype: _cast(t, d))
        for dtype in DTYPES
        if dtype not in dtypes
    ]
    changes += [
        Change("None", ERROR, lambda t: None),
        Change("a string", ERROR, lambda t: "x"),
        Change("a dict", ERROR, lambda t: {}),
        Change("no axis", ERROR, lambda t: t.reshape(-1)[0]),
        Change("strided", SAME, _strided),
        Change("inference tensor", SAME, _inference),
        Change("parameter", SAME, lambda t: torch.nn.Parameter(t.clone(), requires_grad=False)),
    ]
    if not takes_lists:
        changes.append(Change("numpy", ERROR, lambda t: _numpy(t)))
        changes.append(Change("list", ERROR, lambda t: t.tolist()))
    if not moves:
        changes += [
            Change("device meta", ERROR, lambda t: t.to("meta")),
            Change("one axis more", ERROR, lambda t: t[None]),
            Change("one axis less", ERROR, lambda t: t[0]),
            Change("sparse", ERROR, lambda t: t.to_sparse()),
        ]
    if any(dtype.is_floating_point for dtype in dtypes):
        changes.append(Change("negative view", SAME, negative_view))
    return changes


def _cast(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return t.to(dtype)


def _numpy(t: torch.Tensor) -> np.ndarray:
    return t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy()


def _strided(t: torch.Tensor) -> torch.Tensor:
    """The same values with an unrelated one beside each."""
    return torch.stack([t, torch.zeros_like(t)], -1)[..., 0]


def _inference(t: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return t.clone()


def negative_view(t: torch.Tensor) -> torch.Tensor:
    """The same values in memory that holds their negatives."""
    return torch.complex(t.float(), -t.float()).conj().imag


def filled(value: float, at: tuple[int, ...] | None = None) -> Callable[[torch.Tensor], Any]:
    """A copy with one value changed, the last or that at `at`."""

    def make(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        if at is None:
            t.view(-1)[-1] = value
        else:
            t[at] = value
        return t

    return make


def nothing_along(axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.narrow(axis, 0, 0)


def longer(axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.cat([t, t.narrow(axis, 0, 1)], axis)


def shorter(axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.narrow(axis, 0, t.shape[axis] - 1)


def scalars(*values: Any, verdict: str = ERROR) -> list[Change]:
    """Other values of an argument that is no tensor."""
    return [Change(repr(value), verdict, lambda _, v=value: v) for value in values]


def part(name: str, changes: Sequence[Change]) -> list[Change]:
    """Changes of one part of a bundle."""
    return [
        Change(
            f"{name} {change.label}",
            change.verdict,
            lambda bundle, n=name, c=change: bundle._replace(**{n: c.make(getattr(bundle, n))}),
            change.expected,
        )
        for change in changes
    ]
