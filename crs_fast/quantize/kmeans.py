"""k-means over a source of rows: k-means++ seeding, Lloyd's algorithm and mini-batches."""

from __future__ import annotations

import torch

from crs_fast.ops.codebook import residual_lookup, residual_statistics
from crs_fast.quantize.sources import ArraySource, Source

BATCH_ROWS = 1 << 16  # rows in memory at a time, when the data lies outside memory


def kmeans_plus_plus(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Choose k rows as first centres by k-means++ (Arthur & Vassilvitskii 2007).

    Args:
        x: float [N, D], N >= 1.
        k: number of centres; where x has fewer distinct rows, rows are chosen again.
        generator: a CPU generator.

    Returns:
        The centres, rows of x, [k, D].
    """
    chosen = torch.empty(k, dtype=torch.int64, device="cpu")
    # squared, to the nearest centre so far
    distance = torch.ones(len(x), dtype=torch.float64, device="cpu")
    for i in range(k):
        mass = distance.cumsum(0)
        if float(mass[-1]) <= 0:  # every row is a centre already, so draw any row
            mass = torch.ones_like(distance).cumsum(0)
        draw = torch.rand((), generator=generator, dtype=torch.float64, device="cpu") * mass[-1]
        chosen[i] = torch.searchsorted(mass, draw, right=True).clamp(max=len(x) - 1)
        to_chosen = (x - x[chosen[i]]).square().sum(-1).double().cpu()
        distance = to_chosen if i == 0 else torch.minimum(distance, to_chosen)
    return x[chosen.to(x.device)].clone()


def kmeans(
    x: torch.Tensor, centres: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run Lloyd's algorithm from given centres. An empty cluster moves to the row with the
    largest error.

    Args:
        x: float32 [N, D], N >= 1.
        centres: float32 [K, D].
        iterations: the largest number of iterations; fewer if no assignment changes any more.

    Returns:
        The centres float32 [K, D], and the residuals float32 [N, D] of the rows.
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
    """Run Lloyd's algorithm over a source; each iteration reads the source once.

        counts, sums = statistics of every row's nearest centre      # summed over all processes
        centres = sums / counts      # an empty cluster moves to a row with the largest error

    Args:
        source: gives rows float32 [N, D].
        centres: float32 [K, D].
        iterations: the largest number of iterations; fewer if counts and sums no longer change.
        before: codebooks float32 [l, K, D] of earlier levels. What is clustered are the rows'
            residuals after these levels; with None, the rows themselves.
        batch_rows: rows in memory at a time; None reads all at once.

    Returns:
        The centres float32 [K, D], the same on every process.
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
    """Mini-batch k-means: every batch moves each centre to the mean of all rows assigned to it so
    far.

    A centre that got no row in an epoch starts again at a row with a large error, except after
    the last epoch. Arguments and result are those of `lloyd`. Source: Sculley 2010, "Web-scale
    k-means clustering".
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
    """The inputs of the last level of `books` [l, K, D] that have the largest errors, largest
    first: float32 [n, D] with n <= `count`. Inputs without any error are left out."""
    best = books.new_zeros(0, books.shape[2] + 1)  # error, row
    for x in source.batches(batch_rows):
        codes, residual = residual_lookup(x, books)
        error = residual.square().sum(-1)
        keep = error.sort(descending=True, stable=True).indices[:count]
        rows = residual[keep] + books[-1, codes[keep, -1]]
        if len(books) == 1:
            rows = x[keep]  # exact; the sum above rounds
        best = _largest(torch.cat([best, torch.cat([error[keep, None], rows], 1)]), count)
    # All processes must send one shape, so rows with error 0 fill up what is missing.
    padded = best.new_zeros(count, best.shape[1])
    padded[: len(best)] = best
    best = _largest(source.stack(padded), count)
    return best[best[:, 0] > 0, 1:]


def _largest(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows[rows[:, 0].sort(descending=True, stable=True).indices[:count]]


def _with(before: torch.Tensor | None, centres: torch.Tensor) -> torch.Tensor:
    last = centres.float()[None]
    return last if before is None else torch.cat([before, last])
