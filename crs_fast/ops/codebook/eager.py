"""Codebook lookup in blocks of PyTorch calls: float64 inputs, and wherever no kernel is built."""

from __future__ import annotations

import torch

BLOCK_ELEMENTS = 1 << 22


def lookup(
    x: torch.Tensor, codebooks: torch.Tensor, exact: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and residual as `residual_lookup` returns them; inputs finite floats on one device."""
    (rows, dim), (levels, num_codes, _) = x.shape, codebooks.shape
    out = torch.promote_types(torch.promote_types(x.dtype, codebooks.dtype), torch.float32)
    codes = torch.empty(rows, levels, dtype=torch.int64, device=x.device)
    residual = torch.empty(rows, dim, dtype=out, device=x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        tables = [Level(book) for book in codebooks.double()]
        step = max(1, BLOCK_ELEMENTS // max(num_codes, dim))
        for at in range(0, rows, step):
            rest = x[at : at + step].double()  # [n, D]
            for level, table in enumerate(tables):
                codes[at : at + step, level] = chosen = table.nearest(rest, exact)
                rest = rest - table.book[chosen]
            residual[at : at + step] = rest.to(out)
    return codes, residual


def statistics(
    x: torch.Tensor, codebooks: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts int64 [L, K] and sums float64 [L, K, D] of what each level had to code."""
    levels, num_codes, dim = codebooks.shape
    counts = torch.zeros(levels, num_codes, dtype=torch.int64, device=x.device)
    sums = torch.zeros(levels, num_codes, dim, dtype=torch.float64, device=x.device)
    books, step = codebooks.double(), max(1, BLOCK_ELEMENTS // dim)
    for at in range(0, len(x), step):
        rest = x[at : at + step].double()  # [n, D]
        for level, chosen in enumerate(codes[at : at + step].T):
            counts[level] += torch.bincount(chosen, minlength=num_codes)
            # Sorted on the GPU, so the sums do not depend on the order of its threads.
            sums[level].index_put_((chosen,), rest, accumulate=True)
            rest = rest - books[level, chosen]
    return counts, sums


class Level:
    """One codebook, prepared: moved to its mean, since distances do not see a shift but the
    rounding error of `|c|^2 - 2 r.c` grows with the norms."""

    def __init__(self, book: torch.Tensor) -> None:
        self.book = book  # [K, D] float64
        self.mean = book.mean(0)
        centred = book - self.mean
        # A global switch lets float32 products run in TF32 or bfloat16; their error is another.
        high = torch.get_float32_matmul_precision() == "highest"
        self.dtype = torch.float32 if high else torch.float64
        self.columns = centred.T.to(self.dtype).contiguous()  # [D, K]
        self.squares = centred.square().sum(-1)
        self.largest = self.squares.max().sqrt()
        self.squares = self.squares.to(self.dtype)

    def nearest(self, rest: torch.Tensor, exact: bool = True) -> torch.Tensor:
        """rest float64 [n, D] to the nearest codes, int64 [n]."""
        moved = rest - self.mean
        scores = torch.addmm(self.squares, moved.to(self.dtype), self.columns, alpha=-2.0)
        best, codes = scores.min(-1)
        if not exact:
            return codes
        limit = best + self._error(moved).to(self.dtype)
        # Written as "not above" so that overflow (NaN) makes every codeword a candidate.
        close = ~(scores > limit[:, None])  # [n, K]
        unsure = (close.sum(-1) != 1).nonzero().squeeze(-1)
        if unsure.numel():
            codes[unsure] = self._recheck(rest[unsure], close[unsure])
        return codes

    def _error(self, moved: torch.Tensor) -> torch.Tensor:
        """How far apart two scores must be for float32 to order them rightly, [n].

        Twice the bound of one score: any-order dot product, (D + 2) u |r| |c| with its factor 2
        (Higham 2002, eq. 3.5), the rounding of both operands, of |c|^2 and of the last sum.
        """
        dim, info = moved.shape[1], torch.finfo(torch.float32)
        norms = moved.square().sum(-1).sqrt()
        bound = info.eps * ((2 * dim + 8) * norms * self.largest + 4 * self.largest.square())
        bound = bound + 4 * dim * info.tiny
        # Past this the products may overflow float32: then nothing is sure.
        huge = (norms + self.largest).square() > info.max / 16
        return torch.where(huge, torch.inf, bound)

    def _recheck(self, rest: torch.Tensor, close: torch.Tensor) -> torch.Tensor:
        """Measure the candidate pairs in float64; the lower code wins a tie."""
        rows, candidates = close.nonzero(as_tuple=True)
        distances = torch.full(close.shape, torch.inf, dtype=torch.float64, device=rest.device)
        step = max(1, BLOCK_ELEMENTS // rest.shape[1])
        for r, c in zip(rows.split(step), candidates.split(step), strict=True):
            distances[r, c] = (rest[r] - self.book[c]).square().sum(-1)
        return distances.argmin(-1)
