"""What finished codes leave, in Triton: residual, counts and sums in one pass over the rows.

The sums are taken in whole numbers, whose sum does not depend on the order in which the device's
threads add them: every column has a unit, a power of two so small that N rows just fit into 63
bits. A row is so rounded by at most N * 2^-63 of the column's largest number.

Imported only when a CUDA tensor arrives (or by a test, in Triton's interpreter).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def statistics(
    x: torch.Tensor, codebooks: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """residual float32 [N, D], counts int64 [L, K] and sums float64 [L, K, D].

    x: float16, bfloat16 or float32 [N, D], finite; codebooks [L, K, D]; codes int64 [N, L].
    """
    (rows, dim), (levels, num_codes, _) = x.shape, codebooks.shape
    residual = torch.empty(rows, dim, dtype=torch.float32, device=x.device)
    counts = torch.zeros(levels, num_codes, dtype=torch.int64, device=x.device)
    sums = torch.zeros(codebooks.shape, dtype=torch.int64, device=x.device)
    if not rows:
        return residual, counts, sums.double()
    books, scales = codebooks.float().contiguous(), _scales(x, codebooks)
    _finish[(triton.cdiv(rows, 32),)](
        x, books, codes, scales, residual, counts, sums, rows, x.stride(0), x.stride(1),
        D=dim, K=num_codes, L=levels, BN=32, BD=min(32, triton.next_power_of_2(dim)),
        num_warps=4,
    )  # fmt: skip
    return residual, counts, sums.double() / scales


def _scales(x: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Units in 1, for each column, float64 [D]: N numbers as large as the column's rests can be
    add up to less than 2^62 units."""
    low, high = x.aminmax(dim=0)
    largest = torch.maximum(-low.double(), high.double())
    largest = largest + codebooks.double().abs().amax(1).sum(0)
    return torch.exp2(62 - torch.frexp(largest * len(x)).exponent.double())


@triton.jit
def _finish(
    x, books, codes, scales, residual, counts, sums, N, stride_n, stride_d,
    D: tl.constexpr, K: tl.constexpr, L: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    ok = r < N
    for at in range(0, D, BD):
        d = at + tl.arange(0, BD)
        mask = ok[:, None] & (d < D)[None]
        rest = tl.load(x + r[:, None] * stride_n + d[None] * stride_d, mask=mask, other=0.0)
        rest = rest.to(tl.float64)
        scale = tl.load(scales + d, mask=d < D, other=0.0)[None]
        for level in range(L):
            word = level * K + tl.load(codes + r * L + level, mask=ok, other=0)
            if at == 0:
                tl.atomic_add(counts + word, 1, mask=ok, sem="relaxed")
            place = word[:, None] * D + d[None]
            units = tl.floor(rest * scale + 0.5).to(tl.int64)
            tl.atomic_add(sums + place, units, mask=mask, sem="relaxed")
            rest -= tl.load(books + place, mask=mask, other=0.0).to(tl.float64)
        tl.store(residual + r[:, None] * D + d[None], rest.to(tl.float32), mask=mask)
