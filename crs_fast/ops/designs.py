"""Designs of an op among which only a GPU can choose: benchmarks/gpu_tune.py times them in one run
and names the winner. The losers are deleted then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Choice(Generic[T]):
    """The designs of one op by name. The first one is taken outside of `using`.

    now: the design that calls take
    """

    def __init__(self, designs: Mapping[str, T]) -> None:
        self.designs = dict(designs)
        self.now = next(iter(self.designs.values()))

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Calls inside take another design, in all threads."""
        before, self.now = self.now, self.designs[name]
        try:
            yield
        finally:
            self.now = before
