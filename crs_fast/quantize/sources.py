"""Where embeddings come from: an array or memory map (one shard of it a process), or an iterable of
batches. Everything is read in batches, so a catalogue need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed


class Source(Protocol):
    """Rows float32 [total, dim], numbered over all processes."""

    total: int
    dim: int
    device: torch.device

    def batches(
        self, rows: int, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        """This process's rows once, float32 [n, D] with n <= rows; contiguous batches in file
        order, or in random order with a generator. Every process gets as many batches."""

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """The same rows on every process: all of them where total <= count, else `count` random
        ones in file order."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Summed over all processes."""

    def same(self, value: torch.Tensor) -> torch.Tensor:
        """The first process's value, on all."""

    def stack(self, value: torch.Tensor) -> torch.Tensor:
        """Every process's `value`, of one shape, concatenated in process order."""


def open_source(x: Any, sharded: bool = False) -> Source:
    """`x`: a float tensor or array [N, D] (a numpy memory map stays one), or a re-iterable of such
    batches (a list, a DataLoader) or a function that returns a new iterator.

    With `sharded` each process of the default group gives rows of its own.

    Raises:
        ValueError: not [N, D] of floats, no rows, an iterator that cannot start again, or a sharded
            iterable.
    """
    if isinstance(x, torch.Tensor) or hasattr(x, "__array_interface__"):
        return ArraySource(x, sharded)
    if sharded:
        raise ValueError("fit: x must be an array to be sharded (got an iterable)")
    return IterableSource(x)


class ArraySource:
    """A tensor or numpy array; see `open_source`."""

    def __init__(self, x: Any, sharded: bool = False) -> None:
        _check_rows(x)
        self.x, self.dim = x, int(x.shape[1])
        self.sizes = [len(x)]
        if sharded:
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, len(x))
            self.sizes = gathered
        self.in_memory = isinstance(x, torch.Tensor)
        self.device = x.device if isinstance(x, torch.Tensor) else torch.device("cpu")
        self.sharded, self.total = sharded, sum(self.sizes)
        self.start = sum(self.sizes[: distributed.get_rank()]) if sharded else 0
        if not self.total or not self.dim:
            raise ValueError(
                f"fit: x must hold at least one row and one column (got shape {tuple(x.shape)})"
            )

    def batches(
        self, rows: int, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        count = -(-max(self.sizes) // rows)
        order = range(count)
        for i in (
            torch.randperm(count, generator=generator, device="cpu").tolist()
            if generator
            else order
        ):
            yield _floats(self.x[i * rows : (i + 1) * rows])

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        if self.total <= count:
            index = torch.arange(self.total, device="cpu")
        else:
            seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
            picks = np.random.default_rng(seed).choice(self.total, count, replace=False)
            index = torch.from_numpy(np.sort(picks))
        return _finite(self.rows(index))

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers, int64 [n] on the CPU, on every process."""
        here, local = self.local(index)
        mine = self.take(local)
        if not self.sharded:
            return mine
        rows = mine.new_zeros(len(index), self.dim)
        rows[here.to(rows.device)] = mine
        return self.sum(rows)

    def take(self, local: torch.Tensor) -> torch.Tensor:
        """This process's rows of these numbers, int64 [n] on the CPU, among its own."""
        return _floats(self.x[local.to(self.device) if isinstance(self.x, torch.Tensor) else local])

    def same(self, value: torch.Tensor) -> torch.Tensor:
        """The first process's value, on all."""
        if self.sharded:
            value = value.clone()
            distributed.broadcast(value, 0)
        return value

    def local(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of `index` this process holds, bool [n], and where in its own rows, int64."""
        here = (index >= self.start) & (index < self.start + len(self.x))
        return here, index[here] - self.start

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        if self.sharded:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def stack(self, value: torch.Tensor) -> torch.Tensor:
        if not self.sharded:
            return value
        parts = [torch.empty_like(value) for _ in self.sizes]
        distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)


class IterableSource:
    """Batches from outside; see `open_source`. Reading it once tells its size."""

    def __init__(self, x: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self.start_again = x if callable(x) else lambda: x
        if not callable(x) and iter(x) is x:
            raise ValueError(
                "fit: x must be an array, a re-iterable of batches or a function that returns an "
                "iterator (got an iterator, which cannot be read twice)"
            )
        self.total, self.dim = 0, 0
        for batch in self.start_again():
            _check_rows(batch)
            if self.dim and batch.shape[1] != self.dim:
                raise ValueError(
                    f"fit: every batch of x must have {self.dim} columns (got {batch.shape[1]})"
                )
            self.total, self.dim = self.total + len(batch), int(batch.shape[1])
            self.device = _floats(batch[:0]).device
        if not self.total or not self.dim:
            raise ValueError("fit: x must hold at least one row and one column (got none)")

    def batches(
        self, rows: int, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        for batch in self.start_again():
            yield from _floats(batch).split(rows)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        if self.total <= count:
            return _finite(torch.cat(list(self.batches(self.total))))
        seed = int(torch.randint(1 << 62, (), generator=generator, device="cpu"))
        picks = np.sort(np.random.default_rng(seed).choice(self.total, count, replace=False))
        rows, at = [], 0
        for batch in self.batches(self.total):
            low, high = np.searchsorted(picks, [at, at + len(batch)])
            rows.append(batch[torch.from_numpy(picks[low:high] - at).to(batch.device)])
            at += len(batch)
        return _finite(torch.cat(rows))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def same(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def stack(self, value: torch.Tensor) -> torch.Tensor:
        return value


def _check_rows(x: Any) -> None:
    floats = x.is_floating_point() if isinstance(x, torch.Tensor) else x.dtype.kind == "f"
    if x.ndim != 2 or not floats:
        raise ValueError(
            f"fit: x must be a float tensor [N, D] (got {x.dtype}, shape {tuple(x.shape)})"
        )


def _floats(x: Any) -> torch.Tensor:
    """float32, in memory. Pages of a memory map are copied: torch wants writable memory."""
    if not isinstance(x, torch.Tensor):
        x = torch.from_numpy(np.array(x, dtype=np.float32))
    return x.detach().float()


def _finite(rows: torch.Tensor) -> torch.Tensor:
    """Says so early; later batches are checked by the ops."""
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("fit: x must be finite (got NaN or infinity)")
    return rows
