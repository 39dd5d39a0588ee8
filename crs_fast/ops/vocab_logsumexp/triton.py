"""The vocabulary's log-sum-exp in Triton: each program multiplies a block of rows with a tile of
the head's weights and writes one number per row; the tiles' numbers are merged after.

Imported only when a CUDA tensor arrives (or by a test, in Triton's interpreter).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..designs import Choice


class Design(NamedTuple):
    """rows, tokens, width: of one tile of hidden states and weights; warps of one program; stages
    of the loop over the width that are in flight"""

    rows: int
    tokens: int
    width: int
    warps: int
    stages: int


DESIGN = Choice(
    {
        "128 x 128 x 64": Design(128, 128, 64, 8, 3),
        "128 x 256 x 64": Design(128, 256, 64, 8, 3),
        "64 x 256 x 64": Design(64, 256, 64, 4, 3),
        "64 x 128 x 128": Design(64, 128, 128, 4, 2),
    }
)


def vocab_logsumexp(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> torch.Tensor:
    """See `crs_fast.ops.vocab_logsumexp.vocab_logsumexp`. Takes V / 128 numbers per row."""
    (rows, width), tokens = hidden.shape, weight.shape[0]
    tile = tile_of(DESIGN.now, rows, hidden.element_size())
    tiles = triton.cdiv(tokens, tile.tokens)
    parts = torch.empty(tiles, rows, dtype=torch.float32, device=hidden.device)
    if rows:
        hidden, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (hidden, weight))
        # Rows first: the programs that run at one time share a tile of the weights.
        _forward[(triton.cdiv(rows, tile.rows), tiles)](
            hidden, weight, None if bias is None else bias.contiguous(), parts,
            scale, 0.0 if softcap is None else softcap, 1.0 / temperature,
            rows, tokens, hidden.stride(0), weight.stride(0),
            D=width, BM=tile.rows, BV=tile.tokens, BD=tile.width,
            BIASED=bias is not None, SCALED=scale != 1.0, CAPPED=softcap is not None,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return parts.logsumexp(0)


def tile_of(design: Design, rows: int, size: int) -> Design:
    """The design's tile for so many rows of numbers of `size` bytes. Float32 takes three products
    for one, and twice the memory."""
    if size > 2:
        design = Design(64, 64, 32, 4, 2)
    return design._replace(rows=min(design.rows, max(16, triton.next_power_of_2(rows))))


@triton.jit(do_not_specialize=["rows"])
def _forward(
    hidden, weight, bias, parts, scale, softcap, inverse_temperature, rows, tokens, hn, wn,
    D: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr,
    BIASED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Logits are rounded as the head rounds its own."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    d = tl.arange(0, BD)
    # Offsets into the weights pass 2^31 at large vocabularies.
    h_at = hidden + r[:, None].to(tl.int64) * hn + d[None]
    w_at = weight + v[None].to(tl.int64) * wn + d[:, None]
    logits = tl.zeros((BM, BV), tl.float32)
    for at in range(0, D, BD):
        inside = at + d < D
        h = tl.load(h_at + at, mask=(r < rows)[:, None] & inside[None], other=0.0)
        w = tl.load(w_at + at, mask=(v < tokens)[None] & inside[:, None], other=0.0)
        logits = tl.dot(h, w, logits, input_precision="tf32x3")
    dtype = hidden.dtype.element_ty
    if BIASED:
        logits += tl.load(bias + v, mask=v < tokens, other=0.0).to(tl.float32)[None]
    logits = logits.to(dtype).to(tl.float32)
    if SCALED:
        logits = (logits * scale).to(dtype).to(tl.float32)
    if CAPPED:
        # tanh(x) = 1 - 2 / (exp(2x) + 1), which overflows to the right limits.
        logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0))
        logits = logits.to(dtype).to(tl.float32)
    logits = tl.where((v < tokens)[None], logits * inverse_temperature, float("-inf"))
    top = tl.max(logits, 1)
    # Where all are -inf, subtract 0: -inf - -inf is no number.
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(logits - base[:, None]), 1)
    tl.store(parts + tl.program_id(1).to(tl.int64) * rows + r, base + tl.log(total), mask=r < rows)
