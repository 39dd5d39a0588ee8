"""Tree attention in Triton: each program reads a stretch of one request's prompt once, for a block
of its beams and the heads that share those keys; ancestors come by index.

Imported only when a CUDA tensor arrives (or by a test, in Triton's interpreter).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..designs import Choice

_BLOCK_N = 64
# Programs that keep an H100 busy (132 multiprocessors): with fewer, the prompt is split.
DESIGN = Choice({"264 programs": 264, "never split": 0, "132 programs": 132, "528 programs": 528})


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ancestors: torch.Tensor,
    prompt_length: int,
    prompt_mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    splits: int | None = None,
) -> torch.Tensor:
    """See `crs_fast.ops.tree_attention.tree_attention`. `splits`: stretches of the prompt that
    programs of their own take, merged after (default: as many as keep the device busy)."""
    batch, heads, beams, width = query.shape
    groups, out_width = key.shape[1], value.shape[3]
    rows = beams * (heads // groups)
    block_m, warps = _block(rows, max(width, out_width), query.element_size())
    blocks = triton.cdiv(rows, block_m)
    if splits is None:
        wanted = triton.cdiv(DESIGN.now, blocks * groups * batch)
        splits = max(1, min(wanted, triton.cdiv(prompt_length, 4 * _BLOCK_N)))
    stretch = triton.cdiv(triton.cdiv(prompt_length, splits), _BLOCK_N) * _BLOCK_N
    shape = (splits, batch, beams, heads)
    # One split writes the result itself; more write float32 parts.
    dtype = query.dtype if splits == 1 else torch.float32
    out = torch.empty(*shape, out_width, dtype=dtype, device=query.device)
    lse = torch.empty(shape, dtype=torch.float32, device=query.device)
    ancestors = ancestors.contiguous()
    mask = prompt_mask if prompt_mask is None else prompt_mask.contiguous()
    query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
    _forward[(blocks, groups, batch * splits)](
        query, key, value, ancestors, mask, out, lse,
        scale, 0.0 if softcap is None else softcap,
        batch, beams, prompt_length, key.shape[2] - prompt_length, stretch,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        PER=heads // groups, D=width, E=out_width,
        BD=max(16, triton.next_power_of_2(width)), BE=max(16, triton.next_power_of_2(out_width)),
        DEPTH=ancestors.shape[2], BM=block_m, BN=_BLOCK_N,
        MASKED=mask is not None, CAPPED=softcap is not None,
        num_warps=warps, num_stages=2,
    )  # fmt: skip
    if splits == 1:
        return out[0]
    weights = lse.softmax(0)[..., None]  # of each stretch
    # A stretch that holds no token of a row has weight 0 and no defined values.
    return (out * weights).masked_fill_(weights == 0, 0.0).sum(0).to(query.dtype)


def _block(rows: int, width: int, size: int) -> tuple[int, int]:
    """Rows a program takes, and its warps: the most that ptxas fits into registers (sm_90)."""
    most = (64 if size <= 2 else 32) // (2 if width > 128 else 1)
    wanted = 64 if rows >= 64 else 32 if rows >= 32 else 16
    return min(most, wanted), 8 if width > 64 else 4


@triton.jit
def _capped(scores, softcap):
    # tanh(x) = 1 - 2 / (exp(2x) + 1), which overflows to the right limits.
    return softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))


# What changes from call to call: none of it is worth a kernel of its own where it is 1 or 16n.
@triton.jit(do_not_specialize=["batch", "beams", "prompt_length", "slots", "stretch"])
def _forward(
    query, key, value, ancestors, mask, out, lse,
    scale, softcap, batch, beams, prompt_length, slots, stretch,
    qb, qh, qm, kb, kh, kn, vb, vh, vn,
    PER: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """A row is a beam and one of the PER heads that share a key head."""
    group = tl.program_id(1)
    request = tl.program_id(2) % batch
    split = tl.program_id(2) // batch
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    beam, head = row // PER, group * PER + row % PER
    real = beam < beams
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    # Offsets into the cache pass 2^31 at long prompts and large batches.
    keys = key + request.to(tl.int64) * kb + group * kh
    values = value + request.to(tl.int64) * vb + group * vh
    at = request.to(tl.int64) * qb + head[:, None] * qh + beam[:, None] * qm + d[None]
    q = tl.load(query + at, mask=real[:, None] & (d < D)[None], other=0.0)

    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BE), tl.float32)
    end = tl.minimum((split + 1) * stretch, prompt_length)
    for start in range(split * stretch, end, BN):
        n = start + tl.arange(0, BN)
        seen = n < end
        if MASKED:
            token = tl.load(mask + request * prompt_length + n, mask=seen, other=0)
            seen = seen & (token != 0)
        k = tl.load(
            keys + n[None].to(tl.int64) * kn + d[:, None],
            mask=seen[None] & (d < D)[:, None],
            other=0.0,
        )
        s = tl.dot(q, k, input_precision="tf32x3") * scale
        if CAPPED:
            s = _capped(s, softcap)
        s = tl.where(seen[None], s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        # Nothing seen yet: subtract 0, since -inf - -inf is no number.
        base = tl.where(new == float("-inf"), 0.0, new)
        old = tl.exp(top - base)
        p = tl.exp(s - base[:, None])
        v = tl.load(
            values + n[:, None].to(tl.int64) * vn + e[None],
            mask=seen[:, None] & (e < E)[None],
            other=0.0,
        )
        acc = acc * old[:, None] + tl.dot(p.to(v.dtype), v, input_precision="tf32x3")
        total = total * old + tl.sum(p, 1)
        top = new

    if split == 0:
        qf = q.to(tl.float32)
        for t in tl.static_range(DEPTH):
            slot = tl.load(ancestors + (request * beams + beam) * DEPTH + t, mask=real, other=0)
            # A slot that the cache lacks must not be read; the caller gets another one's value.
            n = tl.minimum(tl.maximum(slot, 0), slots - 1) + prompt_length
            k = tl.load(
                keys + n[:, None] * kn + d[None], mask=real[:, None] & (d < D)[None], other=0.0
            )
            s = tl.sum(qf * k.to(tl.float32), 1) * scale
            if CAPPED:
                s = _capped(s, softcap)
            new = tl.maximum(top, s)
            old = tl.exp(top - new)
            p = tl.exp(s - new)
            v = tl.load(
                values + n[:, None] * vn + e[None], mask=real[:, None] & (e < E)[None], other=0.0
            )
            acc = acc * old[:, None] + p[:, None] * v.to(tl.float32)
            total = total * old + p
            top = new

    heads = tl.num_programs(1) * PER
    place = ((split * batch + request).to(tl.int64) * beams + beam) * heads + head
    result = acc / total[:, None]
    tl.store(
        out + place[:, None] * E + e[None],
        result.to(out.dtype.element_ty),
        mask=real[:, None] & (e < E)[None],
    )
    tl.store(lse + place, top + tl.log(total), mask=real)
