"""Where embeddings come from: an array or a memory map (of which each process may hold one shard),
or an iterable of batches. All are read in batches, so a catalogue need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed


class Source(Protocol):
    """Rows float32 [total, dim]; their numbers count on over all processes."""

    total: int
    dim: int
    device: torch.device

    def batches(
        self, rows: int, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield each row of this process once, in contiguous batches float32 [n, D] with
        n <= rows. Batches come in file order, or in random order if a generator is given. Every
        process gets the same number of batches."""

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """All rows if total <= count, else `count` random rows in file order; the same on every
        process."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of `value` over all processes."""

    def same(self, value: torch.Tensor) -> torch.Tensor:
        """The first process's `value`, on every process."""

    def stack(self, value: torch.Tensor) -> torch.Tensor:
        """The `value` of every process, all of one shape, concatenated in process order."""


def batch_of(x: Any) -> Any:
    """A batch as data loaders hand it out: the one array of a list, tuple or dictionary, as a
    `TensorDataset` wraps it, is the batch.

    Raises:
        ValueError: it holds several arrays, or none.
    """
    if isinstance(x, torch.Tensor) or hasattr(x, "dtype"):
        return x
    parts = list(x.values() if isinstance(x, Mapping) else x) if isinstance(x, Iterable) else []
    if len(parts) != 1 or not (isinstance(parts[0], torch.Tensor) or hasattr(parts[0], "dtype")):
        kinds = [type(part).__name__ for part in parts[:4]]
        raise ValueError(
            "fit: a batch of x must be an array [n, D] or hold just one "
            f"(got {type(x).__name__} of {kinds})"
        )
    return parts[0]


def open_source(x: Any, sharded: bool = False) -> Source:
    """Make a source of `x`.

    Args:
        x: a float tensor or array [N, D] (a numpy memory map is not loaded), an iterable of such
            batches that can be read several times (a list, a DataLoader, also of a TensorDataset),
            or a function that returns a new iterator of batches.
        sharded: whether x holds only this process's share of the rows, of torch.distributed's
            default group.

    Raises:
        ValueError: x is not [N, D] of floats, has no rows, is an iterator that can be read only
            once, or is an iterable although `sharded` is true.
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
        """The rows with the numbers `index`, int64 [n] on the CPU; the same on every process."""
        here, local = self.local(index)
        local_rows = self.take(local)
        if not self.sharded:
            return local_rows
        rows = local_rows.new_zeros(len(index), self.dim)
        rows[here.to(rows.device)] = local_rows
        return self.sum(rows)

    def take(self, local: torch.Tensor) -> torch.Tensor:
        """Rows of this process; `local`, int64 [n] on the CPU, counts within its own rows."""
        return _floats(self.x[local.to(self.device) if isinstance(self.x, torch.Tensor) else local])

    def same(self, value: torch.Tensor) -> torch.Tensor:
        """The first process's `value`, on every process."""
        if self.sharded:
            value = value.clone()
            distributed.broadcast(value, 0)
        return value

    def local(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of `index` this process holds, bool [n], and their numbers within its own
        rows, int64."""
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
    """An iterable of batches; see `open_source`. It is read once at the start for its size."""

    def __init__(self, x: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        if not callable(x) and not isinstance(x, Iterable):
            raise ValueError(f"fit: x must be an array or batches of rows (got {type(x).__name__})")
        start = x if callable(x) else lambda: x
        self.start_again = lambda: map(batch_of, start())
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
    """x as float32 in memory. A memory map is copied, because torch wants writable memory."""
    if not isinstance(x, torch.Tensor):
        x = torch.from_numpy(np.array(x, dtype=np.float32))
    return x.detach().float()


def _finite(rows: torch.Tensor) -> torch.Tensor:
    """The rows, if all are finite. The sample is checked first, so that a bad catalogue fails
    early; the ops check later batches."""
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("fit: x must be finite (got NaN or infinity)")
    return rows
