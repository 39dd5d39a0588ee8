"""Arithmetic on nodes in PyTorch, on any device and without waiting for it."""

from __future__ import annotations

import torch

from .tensors import NODE_BITS, FilterTensors, TrieTensors

_LOW = (1 << NODE_BITS) - 1


def unpack(
    trie: TrieTensors, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth, first item and item after the last of nodes int64 [...]."""
    depth, begin = nodes >> (2 * NODE_BITS), nodes & _LOW
    end = torch.where(nodes == 0, trie.level[-1, 1], begin + (nodes >> NODE_BITS & _LOW))
    return depth, begin, end


def are_held(trie: TrieTensors, nodes: torch.Tensor) -> torch.Tensor:
    """Which nodes int64 [...] name a depth and items that exist, so that they may be followed."""
    depth, _, end = unpack(trie, nodes)
    inside = (depth >= 1) & (depth <= trie.num_levels) & (end <= trie.level[-1, 1])
    return (nodes == 0) | inside


def pack(depth: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return torch.where(depth == 0, 0, depth << (2 * NODE_BITS) | (end - begin) << NODE_BITS | begin)


def popcount(bits: torch.Tensor) -> torch.Tensor:
    """Set bits of each int64."""
    bits = bits - (bits >> 1 & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    bits = bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0F
    return bits * 0x0101010101010101 >> 56


def before(
    words: torch.Tensor, rank: torch.Tensor, row: torch.Tensor, item: torch.Tensor
) -> torch.Tensor:
    """Set bits before position `item` of bitmap `row`."""
    word, bit = item >> 6, item & 63
    below = words[row, word] & ((torch.ones_like(item) << bit) - 1)
    return rank[row, word].long() + popcount(below)


def begin_of(trie: TrieTensors, level: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Where the k-th node of depth level + 1 begins, which must exist (else anything)."""
    low, high = torch.zeros_like(k), torch.full_like(k, trie.rank.shape[1] - 1)
    for _ in range(trie.rank.shape[1].bit_length()):  # the last word with rank <= k
        middle = (low + high + 1) // 2
        right = trie.rank[level, middle] <= k
        low, high = torch.where(right, middle, low), torch.where(right, high, middle - 1)
    word, skip = trie.bits[level, low], k - trie.rank[level, low]
    bit = torch.zeros_like(k)
    for width in (32, 16, 8, 4, 2, 1):  # halve the word until one bit is left
        lower = popcount(word >> bit & (1 << width) - 1)
        right = skip >= lower
        bit, skip = torch.where(right, bit + width, bit), torch.where(right, skip - lower, skip)
    return low * 64 + bit


def begins(trie: TrieTensors, level: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    return (trie.bits[level, item >> 6] >> (item & 63) & 1).bool()


def span(trie: TrieTensors, nodes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of nodes [...]: level of their children, whether they may have any, begin, end, and the
    first and last child's index within their depth."""
    depth, begin, end = unpack(trie, nodes)
    level = depth.clamp(max=trie.num_levels - 1)
    inner = (depth < trie.num_levels) & (begin < end)
    first = before(trie.bits, trie.rank, level, begin)
    last = before(trie.bits, trie.rank, level, end)
    return level, inner, begin, end, first, torch.where(inner, last, first)


def ending(trie: TrieTensors, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The items whose SID ends at each of nodes [...], as begin and end; empty where none does."""
    level, inner, begin, end, first, last = span(trie, nodes)
    ends = (inner & ~begins(trie, level, begin)) | (nodes >> (2 * NODE_BITS) == trie.num_levels)
    stop = torch.where(first < last, begin_of(trie, level, first), end)
    return begin, torch.where(ends, stop, begin)


def allowed(
    trie: TrieTensors, filters: FilterTensors | None, which: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Whether some allowed item is below each node; bitmap -1 allows every item."""
    if filters is None:
        return torch.ones_like(nodes, dtype=torch.bool)
    _, begin, end = unpack(trie, nodes)
    return (before(*filters, which, end) > before(*filters, which, begin)) | (which < 0)


def continues(
    trie: TrieTensors, filters: FilterTensors | None, which: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Whether some code may follow each node: an allowed item is below it whose SID goes on."""
    _, stop = ending(trie, nodes)
    _, _, end = unpack(trie, nodes)
    if filters is None:
        return stop < end
    left = before(*filters, which, end) > before(*filters, which, stop)
    return torch.where(which < 0, stop < end, left)
