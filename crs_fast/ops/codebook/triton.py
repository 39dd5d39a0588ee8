"""Residual codebook lookup in Triton: one launch over all levels, any D, nothing of size N x K.

Scores in TF32, or as sums of TF32 numbers, first. Where two codewords lie within their error bound,
the two are measured in float64 on the spot; rows with more than two go to a list that a second
launch codes in float64 altogether. Imported only when a CUDA tensor arrives (or by a test, in
Triton's interpreter).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..designs import Choice

# TF32 keeps 10 bits of mantissa. Whether the hardware rounds or cuts them, the error of an operand
# stays below this, and that of a product below twice this and its square.
TF32_EPS = 2.0**-10
_RECHECK_PROGRAMS = 1024


class Design(NamedTuple):
    """How the scores are taken.

    precision: of the exact codes' scores, "tf32" or "tf32x3" (each operand as the sum of two TF32
        numbers: three products in place of one, and few codewords to measure again)
    keeps: what is left of a row stays in registers from level to level, where all D fit; else it
        is read again
    rows, codes: of one tile
    warps: of one program
    """

    precision: str = "tf32"
    keeps: bool = False
    rows: int = 64
    codes: int = 64
    # With four warps the running best and second best spill out of the registers.
    warps: int = 8

    def fitted(self, dim: int) -> Design:
        """For rows of `dim` numbers: wide ones take the registers that other tiles would need."""
        return self if dim <= 64 else Design(self.precision, self.keeps)


DESIGN = Choice(
    {
        "tf32": Design(),
        "tf32x3": Design("tf32x3"),
        "tf32, kept": Design(keeps=True),
        "tf32x3, kept": Design("tf32x3", keeps=True),
        "tf32x3, kept, 64 x 32": Design("tf32x3", keeps=True, codes=32, warps=4),
        "tf32x3, kept, 128 x 32": Design("tf32x3", keeps=True, rows=128, codes=32),
    }
)


class Tables(NamedTuple):
    """Codebooks prepared for the kernel.

    books float32 [L, K, D] as given; shift float32 [L, D], about the mean, and moved float32
    [L, K, D], the codewords seen from it; half_squares float32 [L, K] of the moved codewords;
    norms float32 [L, 2]: the longest moved codeword, and the shift
    """

    books: torch.Tensor
    shift: torch.Tensor
    moved: torch.Tensor
    half_squares: torch.Tensor
    norms: torch.Tensor


def prepare(codebooks: torch.Tensor) -> Tables:
    """codebooks [L, K, D] of float16, bfloat16 or float32. Distances do not see a shift, but the
    rounding error of `c.r - |c|^2 / 2` grows with the norms."""
    books = codebooks.float().contiguous()
    shift = books.double().mean(1).float()
    moved = books.double() - shift.double()[:, None]
    squares = moved.square().sum(-1)  # [L, K]
    norms = torch.stack([squares.amax(-1).sqrt(), shift.double().square().sum(-1).sqrt()], -1)
    # Rounding up, and above what a flushed denormal number may hide: a bound must stay one.
    norms = (norms * (1 + 1e-6) + 1e-30).float()
    return Tables(books, shift, moved.float().contiguous(), (squares / 2).float(), norms)


def margins(dim: int, tiles: int, precision: str = "tf32") -> tuple[float, float]:
    """(a, b): two scores more than `a |m| C + b C^2` apart are in the right order, for rows m
    and codewords no longer than C.

    Twice the error of one score: both operands cut to TF32, `dim` sums in the tensor cores (taken
    as four times float32's unit, since they cut too), the last difference, and the low bits of the
    score that hold the tile's number. With "tf32x3" an operand's second part is cut, and the
    product of the two second parts left out.
    """
    product = 2 * TF32_EPS + TF32_EPS**2 + (dim + 8) * 2.0**-21
    if precision == "tf32x3":
        # The sums of the small products are a thousandth of the large ones'.
        product = 4 * TF32_EPS**2 + 1.01 * (dim + 16) * 2.0**-21
    packing = 2.0 ** (_bits(tiles) - 22)
    return 2.04 * (product + packing), 2.04 * (packing + 2.0**-22)


def lookup(
    x: torch.Tensor, codebooks: torch.Tensor, exact: bool, want_residual: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes int64 [N, L], residual float32 [N, D] (or [0, D]) and a flag, int32 [1], on the
    device: above 0 where x holds NaN or infinity, and then the rest means nothing.

    x: float16, bfloat16 or float32 [N, D], any strides; codebooks [L, K, D] finite. Beyond the
    outputs this takes 8 N bytes.
    """
    (rows, dim), (levels, num_codes, _) = x.shape, codebooks.shape
    codes = torch.empty(rows, levels, dtype=torch.int64, device=x.device)
    residual = torch.empty(rows if want_residual else 0, dim, device=x.device, dtype=torch.float32)
    state = torch.zeros(2, dtype=torch.int32, device=x.device)  # listed rows, not finite
    if not rows:
        return codes, residual, state[1:]
    tables = prepare(codebooks)
    listed = torch.empty(rows if exact else 1, dtype=torch.int64, device=x.device)
    block_d = min(128, max(16, triton.next_power_of_2(dim))) if dim <= 128 else 64
    design = DESIGN.now.fitted(dim)
    block_k = min(design.codes, max(16, triton.next_power_of_2(num_codes)))
    tiles = triton.cdiv(num_codes, block_k)
    # Fast codes are TF32's.
    precision = design.precision if exact else "tf32"
    a, b = margins(dim, tiles, precision)
    shape = {"D": dim, "K": num_codes, "L": levels}
    strides = (x.stride(0), x.stride(1))
    _score[(triton.cdiv(rows, design.rows),)](
        x, *tables, codes, listed, state, rows, *strides, a, b, **shape,
        BN=design.rows, BK=block_k, BD=block_d, BITS=_bits(tiles), EXACT=exact,
        PRECISION=precision, KEEPS=design.keeps and dim <= block_d, CUT=_interpreted(),
        num_warps=design.warps, num_stages=2,
    )  # fmt: skip
    block_d = min(128, triton.next_power_of_2(dim))
    if exact:
        _recheck[(min(rows, _RECHECK_PROGRAMS),)](
            x, tables.books, codes, listed, state, *strides, **shape, BK=32, BD=block_d,
            num_warps=4,
        )  # fmt: skip
    if want_residual:
        _subtract[(triton.cdiv(rows, 32),)](
            x, tables.books, codes, residual, rows, *strides, **shape, BN=32, BD=block_d,
            num_warps=4,
        )  # fmt: skip
    return codes, residual, state[1:]


def _bits(tiles: int) -> int:
    return max(0, math.ceil(math.log2(tiles)))


def _interpreted() -> bool:
    """The interpreter multiplies in float32; the kernel then cuts operands as TF32 does."""
    return not isinstance(_score, triton.runtime.JITFunction)


@triton.jit
def _rest(x, books, codes, r, ok, d, stride_n, stride_d, level, D, K, L, dtype: tl.constexpr):
    """What the levels before `level` left of columns d of rows r, [rows, columns]."""
    mask = ok[:, None] & (d < D)[None]
    rest = tl.load(x + r[:, None] * stride_n + d[None] * stride_d, mask=mask, other=0.0).to(dtype)
    for j in range(level):
        code = tl.load(codes + r * L + j, mask=ok, other=0)
        word = books + (j * K + code[:, None]) * D + d[None]
        rest -= tl.load(word, mask=mask, other=0.0).to(dtype)
    return rest


@triton.jit
def _distance(x, books, codes, r, ok, code, stride_n, stride_d, level, D, K, L):
    """Squared distance of each row's rest to one codeword of `level`, float64 [rows]."""
    total = tl.zeros(r.shape, tl.float64)
    for at in range(0, D, 32):  # few columns: float64 takes registers
        d = at + tl.arange(0, 32)
        rest = _rest(x, books, codes, r, ok, d, stride_n, stride_d, level, D, K, L, tl.float64)
        word = books + (level * K + code[:, None]) * D + d[None]
        gap = rest - tl.load(word, mask=ok[:, None] & (d < D)[None], other=0.0).to(tl.float64)
        total += tl.sum(gap * gap, 1)
    return total


@triton.jit
def _cut(value):
    """Drop the bits of a float32 that TF32 does not have."""
    bits = value.to(tl.int32, bitcast=True) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _product(rows, words, score, PRECISION: tl.constexpr, CUT: tl.constexpr):
    """score + rows @ words."""
    if CUT:
        a, b = _cut(rows), _cut(words)
        if PRECISION == "tf32x3":
            score += tl.dot(_cut(rows - a), b, input_precision="ieee")
            score += tl.dot(a, _cut(words - b), input_precision="ieee")
        return score + tl.dot(a, b, input_precision="ieee")
    else:
        return tl.dot(rows, words, score, input_precision=PRECISION)


@triton.jit
def _score(
    x, books, shift, moved, half_squares, norms, codes, listed, state,
    N, stride_n, stride_d, margin_norm, margin_square,
    D: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    BITS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, KEEPS: tl.constexpr,
    CUT: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    ok = r < N
    lane = tl.arange(0, BK)
    low: tl.constexpr = (1 << BITS) - 1
    hard = tl.zeros([BN], tl.int32)
    bad = tl.zeros([BN], tl.int32)
    longest = tl.zeros([BN], tl.float32)
    kept = tl.zeros([BN, BD if KEEPS else 1], tl.float32)
    if KEEPS:
        d = tl.arange(0, BD)
        kept = _rest(x, books, codes, r, ok, d, stride_n, stride_d, 0, D, K, L, tl.float32)
    for level in range(L):
        # Lane by lane: the best and second best score, the tile of each in its low bits (exact);
        # the best score and its code (fast).
        best = tl.full([BN, BK], -float("inf"), tl.float32)
        second = tl.full([BN, BK], -float("inf"), tl.float32)
        where = tl.zeros([BN, BK], tl.int32)
        square = tl.zeros([BN], tl.float32)
        finite = tl.zeros([BN], tl.float32)
        if D <= BD:
            d = tl.arange(0, BD)
            if KEEPS:
                rows = kept
            else:
                rows = _rest(
                    x, books, codes, r, ok, d, stride_n, stride_d, level, D, K, L, tl.float32
                )
            rows -= tl.load(shift + level * D + d, mask=d < D, other=0.0)[None]
            square = tl.sum(rows * rows, 1)
            finite = tl.sum(rows * 0.0, 1)  # NaN where a value is not
        for tile in range((K + BK - 1) // BK):
            k = tile * BK + lane
            score = tl.zeros([BN, BK], tl.float32)
            for at in range(0, D, BD):
                d = at + tl.arange(0, BD)
                if D > BD:
                    rows = _rest(
                        x, books, codes, r, ok, d, stride_n, stride_d, level, D, K, L, tl.float32
                    )
                    rows -= tl.load(shift + level * D + d, mask=d < D, other=0.0)[None]
                    square += tl.where(tile == 0, tl.sum(rows * rows, 1), 0.0)
                    finite += tl.sum(rows * 0.0, 1)
                word = moved + (level * K + k[None]) * D + d[:, None]
                words = tl.load(word, mask=(k < K)[None] & (d < D)[:, None], other=0.0)
                score = _product(rows, words, score, PRECISION, CUT)
            half = tl.load(half_squares + level * K + k, mask=k < K, other=float("inf"))
            score -= half[None]
            if EXACT:
                bits = (score.to(tl.int32, bitcast=True) & ~low) | tile
                # Low bits would turn the infinity of a code past the last into NaN.
                score = tl.where((k < K)[None], bits.to(tl.float32, bitcast=True), -float("inf"))
                second = tl.maximum(second, tl.minimum(best, score))
                best = tl.maximum(best, score)
            else:
                where = tl.where(score > best, k[None], where)
                best = tl.maximum(best, score)
        top, first = tl.max(best, 1, return_indices=True)
        if EXACT:
            code = (top.to(tl.int32, bitcast=True) & low) * BK + first
            others = tl.where(lane[None] == first[:, None], second, best)
            runner, next_lane = tl.max(others, 1, return_indices=True)
            rival = (runner.to(tl.int32, bitcast=True) & low) * BK + next_lane
            third = tl.max(
                tl.where(
                    (lane[None] == first[:, None]) | (lane[None] == next_lane[:, None]),
                    second,
                    best,
                ),
                1,
            )
            norm = tl.sqrt(square) * 1.001 + 1e-17  # the squares may have underflown
            most = tl.load(norms + 2 * level)
            # Float32 residuals carry the rounding of each subtraction before this one.
            length = norm + tl.load(norms + 2 * level + 1)
            longest = tl.where(level > 0, tl.maximum(longest, length), longest)
            drift = 1.2e-7 * (level * longest + norm)
            margin = margin_norm * norm * most + margin_square * most * most
            margin += 2.02 * drift * most + 4e-38 * D
            # Past this float32 may overflow; NaN is not below it either.
            fits = norm + most < 1e18
            two_alone = (next_lane != first) & (top - third > margin)
            hard |= (~(fits & ((top - runner > margin) | two_alone))).to(tl.int32)
            pair = ~(top - runner > margin) & (hard == 0) & ok
            if tl.max(pair.to(tl.int32), 0) > 0:
                one = _distance(x, books, codes, r, pair, code, stride_n, stride_d, level, D, K, L)
                two = _distance(x, books, codes, r, pair, rival, stride_n, stride_d, level, D, K, L)
                swap = pair & ((two < one) | ((two == one) & (rival < code)))
                code = tl.where(swap, rival, code)
        else:
            code = tl.min(tl.where(best == top[:, None], where, K), 1)
            bad |= (~(finite == 0.0)).to(tl.int32)
        # A listed row goes on with any code: it is coded afresh.
        code = tl.minimum(tl.maximum(code, 0), K - 1)
        tl.store(codes + r * L + level, code.to(tl.int64), mask=ok)
        if KEEPS:
            word = books + (level * K + code[:, None]) * D + d[None]
            kept -= tl.load(word, mask=ok[:, None] & (d < D)[None], other=0.0)
        if EXACT or not KEEPS:  # the codes are read again
            tl.debug_barrier()
    if EXACT:
        hard = tl.where(ok, hard, 0)
        count = tl.sum(hard, 0)
        if count > 0:
            at = tl.atomic_add(state, count) + tl.cumsum(hard, 0) - 1
            tl.store(listed + at, r, mask=hard > 0)
    else:
        tl.atomic_max(state + 1, tl.max(tl.where(ok, bad, 0), 0))


@triton.jit
def _recheck(
    x, books, codes, listed, state, stride_n, stride_d,
    D: tl.constexpr, K: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Code every listed row in float64, a row a program at a time."""
    count = tl.load(state)
    lane = tl.arange(0, BK)
    one = tl.zeros([1], tl.int64)
    for i in range(tl.program_id(0), count, tl.num_programs(0)):
        r = tl.load(listed + i) + one
        size = 0.0
        for level in range(L):
            nearest = tl.full([1], float("inf"), tl.float64)
            chosen = tl.zeros([1], tl.int64)
            for tile in range((K + BK - 1) // BK):
                k = tile * BK + lane
                total = tl.zeros([BK], tl.float64)
                for at in range(0, D, BD):
                    d = at + tl.arange(0, BD)
                    rest = _rest(
                        x, books, codes, r, r >= 0, d, stride_n, stride_d, level, D, K, L,
                        tl.float64,
                    )  # fmt: skip
                    word = books + (level * K + k[:, None]) * D + d[None]
                    mask = (k < K)[:, None] & (d < D)[None]
                    gap = rest - tl.load(word, mask=mask, other=0.0).to(tl.float64)
                    total += tl.sum(tl.where(mask, gap * gap, 0.0), 1)
                total = tl.where(k < K, total, float("inf"))
                least, where = tl.min(total, 0, return_indices=True)
                closer = least < nearest
                nearest = tl.where(closer, least, nearest)
                chosen = tl.where(closer, tile * BK + where, chosen)
            # Finite inputs are at a finite distance in float64.
            size += tl.max((~(nearest < float("inf"))).to(tl.float32), 0)
            tl.store(codes + r * L + level, chosen)
            tl.debug_barrier()
        if size > 0:
            tl.atomic_max(state + 1, 1)


@triton.jit
def _subtract(
    x, books, codes, residual, N, stride_n, stride_d,
    D: tl.constexpr, K: tl.constexpr, L: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The residual that the finished codes leave, subtracted in float64."""
    r = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    ok = r < N
    for at in range(0, D, BD):
        d = at + tl.arange(0, BD)
        rest = _rest(x, books, codes, r, ok, d, stride_n, stride_d, L, D, K, L, tl.float64)
        to = residual + r[:, None] * D + d[None]
        tl.store(to, rest.to(tl.float32), mask=ok[:, None] & (d < D)[None])
