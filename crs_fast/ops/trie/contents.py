"""Whether the contents of hand-made or loaded tensors agree, so that kernels may follow them."""

from __future__ import annotations

import numpy as np
import torch

from .nodes import popcount
from .tensors import NODE_BITS, FilterTensors, TokenTensors, TrieTensors

TRIE_DTYPES = {
    "codes": (torch.uint8, torch.int16, torch.int32),
    "bits": (torch.int64,),
    "rank": (torch.int32,),
    "starts": (torch.int32,),
    "level": (torch.int64,),
}


def inconsistency(t: TrieTensors, items: int) -> str | None:
    """Why the kernels could not trust a trie of so many items, or None. Guards every index that
    they follow."""
    for name, tensor in t._asdict().items():
        if tensor.dtype not in TRIE_DTYPES[name]:
            return f"{name} must not be {tensor.dtype}"
    levels, words = t.bits.shape if t.bits.ndim == 2 else (0, 0)
    used = items // 64 + 1
    if not 1 <= levels <= 127 or words < used or t.rank.shape != t.bits.shape:
        return "bits and rank must be [levels, words], one bit an item"
    if t.level.shape != (levels + 1, 2) or t.codes.ndim != 1 or t.starts.ndim != 1:
        return "tensor sizes disagree"
    if t.level[-1].tolist() != [t.codes.numel(), items]:
        return "the totals must be the number of codes and of items"
    return _bad_bitmaps(t, items, used) or _bad_starts(t) or _bad_codes(t, items)


def trie_problem(trie: TrieTensors) -> str | None:
    """`inconsistency` of a trie on any device that may have room for more items, as that of a
    `TrieSlot` has. Dtypes and shapes are checked."""
    on_cpu = TrieTensors(*(tensor.detach().cpu() for tensor in trie))
    codes, items = on_cpu.level[-1].tolist()
    used = items // 64 + 1
    if not (0 <= items < 1 << NODE_BITS and used <= on_cpu.bits.shape[1]):
        return "bits and rank must be [levels, words], one bit an item"
    if not 0 <= codes <= on_cpu.codes.numel():
        return "the totals must be the number of codes and of items"
    nodes = on_cpu.level[1:, 0] - on_cpu.level[:-1, 0]
    beyond = on_cpu.bits[:, used:].any() | (on_cpu.rank[:, used:] != nodes[:, None]).any()
    if bool(beyond):
        return "a node begins past the last item"
    return inconsistency(on_cpu.used(), items)


def tokens_problem(tokens: TokenTensors) -> str | None:
    """What the kernels could not write to in logits of `num_columns` columns, or None."""
    column, denied, _, num_columns = tokens
    for name, least, values in (("column", -1, column), ("denied", 0, denied)):
        if not values.numel():
            continue
        lowest, highest = (int(end) for end in values.aminmax())
        if not least <= lowest <= highest < num_columns:
            return f"{name} must lie in {least} .. {num_columns - 1}, below num_columns " + (
                f"(got {lowest} .. {highest})"
            )
    return None


def filters_problem(filters: FilterTensors) -> str | None:
    """Why the ranks are not those of the bitmaps, or None."""
    count = popcount(filters.words)
    if torch.equal(filters.rank.long(), count.cumsum(1) - count):
        return None
    return "rank must count the bits before each word"


def _bad_bitmaps(t: TrieTensors, items: int, used: int) -> str | None:
    beyond = torch.full((used,), 0, dtype=torch.int64, device="cpu")
    beyond[-1] = -1 << items % 64
    if bool((t.bits[:, :used] & beyond).any()) or bool(t.bits[:, used:].any()):
        return "a node begins past the last item"
    count = popcount(t.bits[:, :used])
    if not torch.equal(t.rank[:, :used].long(), count.cumsum(1) - count):
        return "rank must count the bits before each word"
    nodes = count.sum(1)
    if not torch.equal(t.level[:, 0], torch.cat([nodes.new_zeros(1), nodes.cumsum(0)])):
        return "each depth must have one code a node"
    if items and not bool((t.bits[0, 0] & 1).bool()):
        return "the first item must begin a node"
    if t.codes.numel() and int(t.codes.min()) < 0:
        return "a code is below 0"
    return None


def _bad_starts(t: TrieTensors) -> str | None:
    at = 0
    tables = t.level[:-1, 1].tolist()
    for depth, (row, first) in enumerate(zip(t.bits, tables, strict=True)):
        if first < 0:
            continue
        begins = _unpacked(row).nonzero().squeeze(1)
        table = t.starts[at : at + begins.numel()]
        if first != at or not torch.equal(table.long(), begins):
            return f"starts must list where the nodes of depth {depth + 1} begin"
        at += begins.numel()
    return None if at == t.starts.numel() else "starts must belong to a depth"


def _bad_codes(t: TrieTensors, items: int) -> str | None:
    """Searches and bounds rely on siblings in order."""
    parents = torch.zeros(
        items, dtype=torch.int64, device="cpu"
    )  # node of the depth above that holds each item
    for depth, (row, first) in enumerate(zip(t.bits, t.level[:-1, 0].tolist(), strict=True)):
        begins = _unpacked(row)[:items]
        codes = t.codes[first : first + int(begins.sum())].long()
        parent = parents[begins]
        if bool(((parent[1:] == parent[:-1]) & (codes[1:] <= codes[:-1])).any()):
            return f"codes of depth {depth + 1} must ascend below a node"
        # An item whose SID has ended stands before its prefix's children, not below the last node.
        parents = begins.cumsum(0)
    return None


def _unpacked(row: torch.Tensor) -> torch.Tensor:
    """bool [64 W] of words int64 [W]."""
    return torch.from_numpy(np.unpackbits(row.numpy().view("u1"), bitorder="little")).bool()
