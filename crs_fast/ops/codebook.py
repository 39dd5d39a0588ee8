"""Residual codebook lookup: exact nearest codewords, level by level, at float32 speed."""

from __future__ import annotations

import torch

_BLOCK_ELEMENTS = 1 << 22
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def residual_lookup(x: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize vectors against a stack of codebooks, each level coding what the last left over.

        for l in range(L):
            codes[:, l] = argmin_k |x - codebooks[l, k]|^2        # ties to the lower code
            x = x - codebooks[l, codes[:, l]]

    Exact: the codes are those float64 arithmetic chooses. Scores are taken by a float32 matrix
    product, and only codewords whose score lies within its rounding error of the best are
    measured again in float64. Rows go through in blocks, so N x K is never held.

    Args:
        x: float [N, D]; float16, bfloat16, float32 or float64, any strides; N may be 0.
        codebooks: float [L, K, D], on x's device.

    Returns:
        codes: int64 [N, L].
        residual: [N, D], what remains after the last level; float64 where an input is float64,
            float32 otherwise.

    Raises:
        ValueError: wrong type, dtype, shape or device, or a value that is NaN or infinite.

    Source: residual quantization as in Lee et al. 2022 (arXiv 2203.01941), eq. 1.
    """
    _check(x, codebooks)
    (rows, dim), (levels, num_codes, _) = x.shape, codebooks.shape
    out = torch.promote_types(torch.promote_types(x.dtype, codebooks.dtype), torch.float32)
    codes = torch.empty(rows, levels, dtype=torch.int64, device=x.device)
    residual = torch.empty(rows, dim, dtype=out, device=x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        tables = [_Level(book) for book in codebooks.double()]
        for at in range(0, rows, max(1, _BLOCK_ELEMENTS // max(num_codes, dim))):
            block = slice(at, at + max(1, _BLOCK_ELEMENTS // max(num_codes, dim)))
            rest = x[block].double()  # [n, D]
            for level, table in enumerate(tables):
                codes[block, level] = chosen = table.nearest(rest)
                rest = rest - table.book[chosen]
            residual[block] = rest.to(out)
    return codes, residual


class _Level:
    """One codebook, prepared: moved to its mean, since distances do not see a shift but the
    rounding error of `|c|^2 - 2 r.c` grows with the norms."""

    def __init__(self, book: torch.Tensor) -> None:
        self.book = book  # [K, D] float64
        self.mean = book.mean(0)
        centred = book - self.mean
        # A global switch lets float32 products run in TF32 or bfloat16; their error is another.
        exact = torch.get_float32_matmul_precision() == "highest"
        self.fast = torch.float32 if exact else torch.float64
        self.columns = centred.T.to(self.fast).contiguous()  # [D, K]
        self.squares = centred.square().sum(-1)
        self.largest = self.squares.max().sqrt()
        self.squares = self.squares.to(self.fast)

    def nearest(self, rest: torch.Tensor) -> torch.Tensor:
        """rest float64 [n, D] to the nearest codes, int64 [n]."""
        moved = rest - self.mean
        scores = torch.addmm(self.squares, moved.to(self.fast), self.columns, alpha=-2.0)
        best, codes = scores.min(-1)
        limit = best + self._error(moved).to(self.fast)
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
        step = max(1, _BLOCK_ELEMENTS // rest.shape[1])
        for r, c in zip(rows.split(step), candidates.split(step), strict=True):
            distances[r, c] = (rest[r] - self.book[c]).square().sum(-1)
        return distances.argmin(-1)


def _check(x: torch.Tensor, codebooks: torch.Tensor) -> None:
    for name, value, rank in (("x", x, 2), ("codebooks", codebooks, 3)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"residual_lookup: {name} must be a torch tensor (got {type(value).__name__})"
            )
        if value.dtype not in _FLOATS:
            raise ValueError(
                f"residual_lookup: {name} must be float16, bfloat16, float32 or float64 "
                f"(got {value.dtype})"
            )
        if value.ndim != rank:
            shape = "[N, D]" if rank == 2 else "[L, K, D]"
            raise ValueError(
                f"residual_lookup: {name} must have shape {shape} (got {tuple(value.shape)})"
            )
    if 0 in codebooks.shape:
        raise ValueError(
            f"residual_lookup: codebooks must hold at least one level, code and dimension "
            f"(got {tuple(codebooks.shape)})"
        )
    if x.shape[1] != codebooks.shape[2]:
        raise ValueError(
            f"residual_lookup: x must have the codebooks' {codebooks.shape[2]} dimensions "
            f"(got {x.shape[1]})"
        )
    if x.device != codebooks.device:
        raise ValueError(
            f"residual_lookup: codebooks must be on x's device {x.device} (got {codebooks.device})"
        )
    for name, value in (("x", x), ("codebooks", codebooks)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"residual_lookup: {name} must be finite (got NaN or infinity)")
