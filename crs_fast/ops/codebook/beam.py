"""Residual lookup by beam search: a worse code now may leave a residual that later levels fit."""

from __future__ import annotations

import torch

BLOCK_ELEMENTS = 1 << 22


@torch.no_grad()
def search(
    x: torch.Tensor, codebooks: torch.Tensor, beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and residual as `beam_lookup` returns them."""
    levels, num_codes, dim = codebooks.shape
    books = codebooks.double()
    out = torch.promote_types(torch.promote_types(x.dtype, codebooks.dtype), torch.float32)
    codes = torch.empty(len(x), levels, dtype=torch.int64, device=x.device)
    residual = torch.empty(len(x), dim, dtype=out, device=x.device)
    step = max(1, BLOCK_ELEMENTS // (beams * max(num_codes, dim)))
    for at in range(0, len(x), step):
        best, rest = _search(x[at : at + step].double(), books, beams)
        codes[at : at + step], residual[at : at + step] = best, rest.to(out)
    return codes, residual


def _search(x: torch.Tensor, books: torch.Tensor, beams: int) -> tuple[torch.Tensor, torch.Tensor]:
    rest = x[:, None]  # [n, B, D]
    codes = torch.empty(len(x), 1, 0, dtype=torch.int64, device=x.device)
    rows = torch.arange(len(x), device=x.device)[:, None]
    for book in books:
        # Row by row of the codebook, since |r|^2 - 2 r.c + |c|^2 would lose the last digits.
        scores = torch.stack([(rest - word).square().sum(-1) for word in book], -1)  # [n, B, K]
        kept = _lowest(scores.flatten(1), beams)
        parent, code = kept // len(book), kept % len(book)  # [n, B']
        codes = torch.cat([codes[rows, parent], code[..., None]], -1)
        rest = rest[rows, parent] - book[code]
    return codes[:, 0], rest[:, 0]


def _lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of the `count` lowest of every row, lowest first, ties to the lower column."""
    count = min(count, scores.shape[1])
    limit = scores.topk(count, largest=False).values[:, -1:]
    below, equal = scores < limit, scores == limit
    room = count - below.sum(-1, keepdim=True)
    keep = below | (equal & (equal.cumsum(-1) <= room))
    columns = keep.nonzero()[:, 1].view(len(scores), count)  # ascending
    order = scores.gather(1, columns).sort(stable=True).indices
    return columns.gather(1, order)
