"""k-means: seeding, Lloyd's algorithm and mini-batches, over a source of rows."""

from __future__ import annotations

import torch

from crs_fast.ops.codebook import residual_lookup, residual_statistics
from crs_fast.quantize.sources import ArraySource, Source

BATCH_ROWS = 1 << 16  # rows that a pass over data outside memory holds at a time


def kmeans_plus_plus(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Seed k centres by k-means++ (Arthur & Vassilvitskii 2007).

    Args:
        x: float [N, D], N >= 1.
        k: centres to draw; past the number of distinct rows, rows repeat.
        generator: a CPU generator.

    Returns:
        Centres, rows of x, [k, D].
    """
    chosen = torch.empty(k, dtype=torch.int64, device="cpu")
    distance = torch.ones(len(x), dtype=torch.float64, device="cpu")  # to the nearest centre so far
    for i in range(k):
        mass = distance.cumsum(0)
        # With nothing left to cover, any row does.
        if float(mass[-1]) <= 0:
            mass = torch.ones_like(distance).cumsum(0)
        draw = torch.rand((), generator=generator, dtype=torch.float64, device="cpu") * mass[-1]
        chosen[i] = torch.searchsorted(mass, draw, right=True).clamp(max=len(x) - 1)
        new = (x - x[chosen[i]]).square().sum(-1).double().cpu()
        distance = new if i == 0 else torch.minimum(distance, new)
    return x[chosen.to(x.device)].clone()


def kmeans(
    x: torch.Tensor, centres: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from given centres; an empty cluster moves to the row farthest off.

    Args:
        x: float32 [N, D], N >= 1.
        centres: float32 [K, D].
        iterations: at most; stops once no assignment changes.

    Returns:
        Centres float32 [K, D] and the residuals float32 [N, D] they leave.
    """
    centres = lloyd(ArraySource(x), centres, iterations)
    return centres, residual_lookup(x, centres[None])[1]


def lloyd(
    source: Source,
    centres: torch.Tensor,
    iterations: int,
    before: torch.Tensor | None = None,
    batch_rows: int | None = None,
) -> torch.Tensor:
    """Lloyd's algorithm over a source, a pass an iteration.

        counts, sums = statistics of every row's nearest centre      # summed over all processes
        centres = sums / counts, empty ones moved to the rows worst served

    Args:
        source: of rows float32 [N, D].
        centres: float32 [K, D].
        iterations: at most; stops once counts and sums stay as they were.
        before: codebooks float32 [l, K, D]; the rows clustered are what they leave. None: as read.
        batch_rows: rows to hold at a time; None takes all at once.

    Returns:
        Centres float32 [K, D], the same on every process.
    """
    size = batch_rows or source.total
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    for _ in range(iterations):
        books = centres[None] if before is None else torch.cat([before, centres[None]])
        counts = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=centres.device)
        for x in source.batches(size):
            _, _, count, total = residual_statistics(x, books)
            counts += count[-1]
            sums += total[-1]
        counts, sums = source.sum(counts), source.sum(sums)
        if last is not None and torch.equal(counts, last[0]) and torch.equal(sums, last[1]):
            break
        last = counts, sums
        means = sums / counts.clamp(min=1)[:, None]
        centres = torch.where(counts[:, None] > 0, means, centres.double()).float()
        empty = (counts == 0).nonzero().squeeze(-1)
        if len(empty):
            rows = worst_served(source, books, len(empty), size)
            centres[empty[: len(rows)]] = rows
    return centres


def mini_batches(
    source: Source,
    centres: torch.Tensor,
    epochs: int,
    batch_rows: int,
    generator: torch.Generator,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mini-batch k-means: every batch moves each centre to the mean of all rows it has had.

    Codes that an epoch left without rows start again at the rows worst served, the last epoch
    excepted. Arguments and result as for `lloyd`. Source: Sculley 2010, "Web-scale k-means
    clustering".
    """
    seen = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
    mean = centres.double()
    for epoch in range(epochs):
        used = torch.zeros_like(seen)
        for x in source.batches(batch_rows, generator):
            books = _with(before, mean)
            _, _, count, total = residual_statistics(x, books)
            counts, sums = source.sum(count[-1]), source.sum(total[-1])
            seen += counts
            used += counts
            step = (sums - counts[:, None] * mean) / seen.clamp(min=1)[:, None]
            mean = mean + step
        empty = (used == 0).nonzero().squeeze(-1)
        if len(empty) and epoch + 1 < epochs:
            rows = worst_served(source, _with(before, mean), len(empty), batch_rows)
            mean[empty[: len(rows)]] = rows.double()
            seen[empty[: len(rows)]] = 0
    return mean.float()


def worst_served(source: Source, books: torch.Tensor, count: int, batch_rows: int) -> torch.Tensor:
    """Up to `count` inputs of the last of `books` [l, K, D] that it codes worst, farthest first,
    float32 [<= count, D]; rows coded without error are left out."""
    best = books.new_zeros(0, books.shape[2] + 1)  # error, row
    for x in source.batches(batch_rows):
        codes, residual = residual_lookup(x, books)
        error = residual.square().sum(-1)
        keep = error.sort(descending=True, stable=True).indices[:count]
        rows = residual[keep] + books[-1, codes[keep, -1]]
        if len(books) == 1:
            rows = x[keep]  # without the rounding of a difference
        best = _largest(torch.cat([best, torch.cat([error[keep, None], rows], 1)]), count)
    # One shape on all processes: short of rows, errors of 0 fill up.
    padded = best.new_zeros(count, best.shape[1])
    padded[: len(best)] = best
    best = _largest(source.stack(padded), count)
    return best[best[:, 0] > 0, 1:]


def _largest(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows[rows[:, 0].sort(descending=True, stable=True).indices[:count]]


def _with(before: torch.Tensor | None, centres: torch.Tensor) -> torch.Tensor:
    last = centres.float()[None]
    return last if before is None else torch.cat([before, last])
