"""Plain-PyTorch oracle of every trie op, and the fallback where no kernel was built.

Nothing here imports a wrapper. The ops never synchronise with the host.
"""

from __future__ import annotations

import torch

from .tensors import END, NO_NODE, NODE_BITS, FilterTensors, TokenTensors, TrieTensors

NORMALIZE = ("vocab", "level", "legal")
_LOW = (1 << NODE_BITS) - 1


def unpack(
    trie: TrieTensors, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth, first item and item after the last of nodes int64 [...]."""
    depth, begin = nodes >> (2 * NODE_BITS), nodes & _LOW
    end = torch.where(nodes == 0, trie.level[-1, 1], begin + (nodes >> NODE_BITS & _LOW))
    return depth, begin, end


def _pack(depth: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return torch.where(depth == 0, 0, depth << (2 * NODE_BITS) | (end - begin) << NODE_BITS | begin)


def popcount(bits: torch.Tensor) -> torch.Tensor:
    """Set bits of each int64."""
    bits = bits - (bits >> 1 & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333)
    bits = bits + (bits >> 4) & 0x0F0F0F0F0F0F0F0F
    return bits * 0x0101010101010101 >> 56


def _before(
    words: torch.Tensor, rank: torch.Tensor, row: torch.Tensor, item: torch.Tensor
) -> torch.Tensor:
    """Set bits before position `item` of bitmap `row`."""
    word, bit = item >> 6, item & 63
    below = words[row, word] & ((torch.ones_like(item) << bit) - 1)
    return rank[row, word].long() + popcount(below)


def _begin_of(trie: TrieTensors, level: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
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


def _begins(trie: TrieTensors, level: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    return (trie.bits[level, item >> 6] >> (item & 63) & 1).bool()


def _span(trie: TrieTensors, nodes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of nodes [...]: level of their children, whether they may have any, begin, end, and the
    first and last child's index within their depth."""
    depth, begin, end = unpack(trie, nodes)
    level = depth.clamp(max=trie.num_levels - 1)
    inner = (depth < trie.num_levels) & (begin < end)
    first = _before(trie.bits, trie.rank, level, begin)
    last = _before(trie.bits, trie.rank, level, end)
    return level, inner, begin, end, first, torch.where(inner, last, first)


def ending(trie: TrieTensors, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The items whose SID ends at each of nodes [...], as begin and end; empty where none does."""
    level, inner, begin, end, first, last = _span(trie, nodes)
    ends = (inner & ~_begins(trie, level, begin)) | (nodes >> (2 * NODE_BITS) == trie.num_levels)
    stop = torch.where(first < last, _begin_of(trie, level, first), end)
    return begin, torch.where(ends, stop, begin)


def trie_walk(trie: TrieTensors, codes: torch.Tensor) -> torch.Tensor:
    """Follow codes [R, n] from the root, stopping at the first -1: nodes int64 [R], -1 where the
    trie has no such path."""
    nodes = codes.new_zeros(codes.shape[0])
    stopped = torch.zeros_like(nodes, dtype=torch.bool)
    for column in codes.unbind(1):
        stopped = stopped | (column == END)
        nodes = torch.where(stopped, nodes, _child(trie, nodes, column))
    return nodes


def _child(trie: TrieTensors, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The node each code leads to, by binary search among the sorted codes of the children."""
    level, _, _, end, first, last = _span(trie, nodes.clamp(min=0))
    base = trie.level[level, 0]
    low, high = first, last
    for _ in range(trie.codes.numel().bit_length()):
        middle = (low + high) // 2
        right = (middle < high) & (_code(trie, base + middle) < codes)
        low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
    found = (low < last) & (_code(trie, base + low) == codes) & (nodes >= 0)
    stop = torch.where(low + 1 < last, _begin_of(trie, level, low + 1), end)
    return torch.where(found, _pack(level + 1, _begin_of(trie, level, low), stop), NO_NODE)


def _code(trie: TrieTensors, at: torch.Tensor) -> torch.Tensor:
    if trie.codes.numel() == 0:
        return torch.full_like(at, END)
    return trie.codes[at.clamp(max=trie.codes.numel() - 1)].long()


def trie_rows(trie: TrieTensors, items: torch.Tensor) -> torch.Tensor:
    """The SIDs of items int64 [n] in sorted order: int64 [n, L], -1 after their end."""
    begin = torch.zeros_like(items)
    ended = torch.zeros_like(items, dtype=torch.bool)
    out = []
    for number in range(trie.num_levels):
        level = torch.full_like(items, number)
        k = _before(trie.bits, trie.rank, level, items) + _begins(trie, level, items) - 1
        at = torch.where(k < 0, -1, _begin_of(trie, level, k.clamp(min=0)))
        # A SID that ended has no node here: the last one belongs to items before its prefix.
        ended = ended | (at < begin)
        out.append(torch.where(ended, END, _code(trie, trie.level[level, 0] + k.clamp(min=0))))
        begin = at
    return torch.stack(out, 1)


def allowed(
    trie: TrieTensors, filters: FilterTensors | None, which: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Whether some allowed item is below each node."""
    if filters is None:
        return torch.ones_like(nodes, dtype=torch.bool)
    _, begin, end = unpack(trie, nodes)
    return _before(*filters, which, end) > _before(*filters, which, begin)


def continues(
    trie: TrieTensors, filters: FilterTensors | None, which: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Whether some code may follow each node: an allowed item is below it whose SID goes on."""
    _, stop = ending(trie, nodes)
    _, _, end = unpack(trie, nodes)
    if filters is None:
        return stop < end
    return _before(*filters, which, end) > _before(*filters, which, stop)


def _continuations(
    trie: TrieTensors, tokens: TokenTensors, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What may follow nodes [...], padded: next nodes, codes, logits columns (-1 where none) and
    whether the entry exists, each [..., 1 + C]. Entry 0 ends the SID, or waits after its end."""
    width = tokens.column.shape[1]
    level, _, _, end, first, last = (x[..., None] for x in _span(trie, nodes))
    k = first + torch.arange(width + 1, device=nodes.device)
    bounds = torch.where(k < last, _begin_of(trie, level, k), end)  # [..., C + 1]
    child = _pack(level + 1, bounds[..., :-1], bounds[..., 1:])
    code = _code(trie, trie.level[level, 0] + k[..., :-1])
    known = (k < last)[..., :-1] & (code < width)
    column = torch.where(known, tokens.column[level, code.clamp(0, width - 1)], -1)

    whole = (nodes >> (2 * NODE_BITS) == trie.num_levels)[..., None]
    stop_begin, stop_end = (x[..., None] for x in ending(trie, nodes))
    stop = torch.where(whole, nodes[..., None], _pack(level + 1, stop_begin, stop_end))
    none = torch.full_like(stop, -1)
    return (
        torch.cat([stop, child], -1),
        torch.cat([torch.full_like(stop, END), code], -1),
        torch.cat([none, column], -1),
        torch.cat([stop_begin < stop_end, column >= 0], -1),
    )


def trie_mask(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """logits [R, V] with -inf wherever a token is not legal after nodes [R]."""
    rows, vocab = logits.shape
    following, _, column, legal = _continuations(trie, tokens, nodes.clamp(min=0))  # [R, K]
    if filters is not None:
        per = rows // filters.words.shape[0]
        which = torch.arange(rows, device=nodes.device) // max(per, 1)
        legal = legal & allowed(trie, filters, which[:, None], following)
    column[:, 0] = tokens.terminator
    legal = legal & (column >= 0)
    # A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
    legal[:, 0] |= ~legal.any(1) & (tokens.terminator >= 0)

    sink = torch.where(legal, column, vocab)  # illegal entries land in a spare column
    keep = torch.zeros(rows, vocab + 1, dtype=torch.bool, device=logits.device)
    keep = keep.scatter(1, sink, True)[:, :vocab]
    free = torch.ones(vocab, dtype=torch.bool, device=logits.device)
    free[tokens.denied] = False
    keep = torch.where((nodes == NO_NODE)[:, None], free, keep)
    return torch.where(keep, logits, float("-inf"))


def trie_step(
    logits: torch.Tensor,
    scores: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    num_beams: int,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: FilterTensors | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One constrained beam step; see `crs_fast.ops.trie.trie_step`."""
    batch, beams = scores.shape
    logits = logits.reshape(batch, beams, logits.shape[1]).float() / temperature  # [B, M, V]
    live = (nodes >= 0) & (scores > float("-inf"))  # [B, M]
    at = nodes.clamp(min=0)
    following, code, column, legal = _continuations(trie, tokens, at)  # [B, M, K]
    which = torch.arange(batch, device=nodes.device)[:, None, None]
    legal = legal & allowed(trie, filters, which, following)

    picked = logits.gather(2, column.clamp(min=0))
    if normalize == "vocab":
        norm = logits.logsumexp(2)
    elif normalize == "level":
        depth = unpack(trie, at)[0].clamp(max=trie.num_levels - 1)
        level = tokens.column[depth]  # [B, M, C]
        values = logits.gather(2, level.clamp(min=0))
        norm = values.masked_fill(level < 0, float("-inf")).logsumexp(2)
    else:
        norm = picked.masked_fill(~legal | (column < 0), float("-inf")).logsumexp(2)
    gain = torch.where(column < 0, 0.0, picked - norm[..., None])
    candidates = torch.where(legal & live[..., None], scores[..., None] + gain, float("-inf"))
    candidates = candidates.nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    return _best(candidates, following, code, num_beams)


def _best(
    candidates: torch.Tensor, child: torch.Tensor, code: torch.Tensor, num_beams: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Top beams of [B, M, K] candidates; the stable sort breaks ties to the lower parent, then to
    the lower code."""
    batch, _, width = candidates.shape
    best, order = candidates.view(batch, -1).sort(dim=1, descending=True, stable=True)
    short = num_beams - best.shape[1]
    if short > 0:
        best = torch.nn.functional.pad(best, (0, short), value=float("-inf"))
        order = torch.nn.functional.pad(order, (0, short))
    best, order = best[:, :num_beams], order[:, :num_beams]
    valid = best > float("-inf")
    return (
        best,
        torch.where(valid, child.view(batch, -1).gather(1, order), NO_NODE),
        torch.where(valid, order // width, 0),
        torch.where(valid, code.view(batch, -1).gather(1, order), END),
    )
