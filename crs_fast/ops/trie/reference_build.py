"""Plain-PyTorch oracle of `trie_build`, and the fallback where no kernel was built."""

from __future__ import annotations

import torch

from .tensors import END, NODE_BITS, TrieTensors

_HIGHEST = torch.iinfo(torch.int32).max
# A depth with fewer nodes than one in so many items keeps a table of where they begin.
_SPARSE = 32


def trie_build(sids: torch.Tensor, num_sorted: int = 0) -> tuple[TrieTensors, torch.Tensor]:
    """Trie and order of sids int64 [N, L]; see `crs_fast.ops.trie.trie_build`."""
    _check(sids)
    items = sids.shape[0]
    order = torch.arange(items)
    for column in sids.unbind(1)[::-1]:  # from the last level on, each time stable
        order = order[column[order].sort(stable=True).indices]
    if bool((order[order < num_sorted].diff() < 0).any()):
        raise ValueError(f"trie_build: the first num_sorted = {num_sorted} rows must be in order")

    rows = sids[order]
    differs = torch.ones_like(rows, dtype=torch.bool)  # from the item before, in levels up to here
    differs[1:] = (rows[1:] != rows[:-1]).cumsum(1) > 0
    begins = (differs & (rows != END)).t()  # [L, N]: items at which a node of depth l + 1 begins
    nodes = begins.sum(1)
    sparse = nodes * _SPARSE <= items
    first = torch.stack([nodes, nodes * sparse], 1)
    level = torch.nn.functional.pad(first.cumsum(0), (0, 0, 1, 0))  # [L + 1, 2]
    level[:-1, 1][~sparse] = -1
    level[-1, 1] = items

    codes = rows.t()[begins].to(_narrowest(int(sids.max()) if items else END))
    starts = begins[sparse].nonzero()[:, 1].to(torch.int32)
    return TrieTensors(codes, *_ranked(begins), starts, level), order.to(torch.int32)


def _ranked(marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """marks bool [L, N] as words int64 [L, W] and the marks before each, int32; position N has a
    word."""
    levels, items = marks.shape
    words = items // 64 + 1
    marks = torch.nn.functional.pad(marks, (0, words * 64 - items)).view(levels, words, 64)
    count = marks.sum(2)
    bits = (marks.long() << torch.arange(64)).sum(2)
    return bits, (count.cumsum(1) - count).to(torch.int32)


def _narrowest(highest: int) -> torch.dtype:
    if highest <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    return torch.int16 if highest <= torch.iinfo(torch.int16).max else torch.int32


def _check(sids: torch.Tensor) -> None:
    items, levels = sids.shape
    if items >= 1 << NODE_BITS:
        raise ValueError(f"trie_build: sids must have fewer than 2^28 rows (got {items})")
    if levels > 127:
        raise ValueError(f"trie_build: sids must have at most 127 levels (got {levels})")
    outside = (sids < END) | (sids > _HIGHEST)
    after = (sids[:, 1:] != END) & (sids[:, :-1] == END)
    bad = (sids[:, 0] == END) | outside.any(1) | after.any(1)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    problem = "must have no code after padding"
    if int(sids[row, 0]) == END:
        problem = "must hold at least one code (got only padding)"
    elif bool(outside[row].any()):
        got = int(sids[row][outside[row]][0])
        problem = f"must hold codes in [0, 2^31 - 1], -1 pads (got {got})"
    raise ValueError(f"trie_build: sids[{row}] {problem}")
