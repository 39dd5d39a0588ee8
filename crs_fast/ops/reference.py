"""Plain-PyTorch oracle of every trie op, and the fallback where no kernel was built.

Nothing here imports a wrapper. The ops never synchronise with the host.
"""

from __future__ import annotations

import torch

from .tensors import END, NO_NODE, FilterTensors, TokenTensors, TrieTensors

NORMALIZE = ("vocab", "level", "legal")


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
    """The node each code leads to, by binary search among the sorted edges of each node."""
    at = nodes.clamp(min=0)
    low, end = trie.child_begin[at].long(), trie.child_begin[at + 1].long()
    high = end
    last = max(trie.code.numel() - 1, 0)
    label = trie.code if trie.code.numel() else trie.code.new_full((1,), END)
    for _ in range(trie.code.numel().bit_length()):
        middle = (low + high) // 2
        right = (middle < high) & (label[middle.clamp(max=last)] < codes)
        low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
    found = (low < end) & (label[low.clamp(max=last)] == codes) & (nodes >= 0)
    return torch.where(found, low + 1, NO_NODE)


def _before(filters: FilterTensors, which: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Allowed items before position `item` in bitmap `which`."""
    word, bit = item >> 6, item & 63
    below = filters.words[which, word] & ((torch.ones_like(item) << bit) - 1)
    return filters.rank[which, word].long() + _popcount(below)


def _popcount(bits: torch.Tensor) -> torch.Tensor:
    count = torch.zeros_like(bits)
    for shift in range(64):
        count = count + ((bits >> shift) & 1)
    return count


def allowed(
    trie: TrieTensors, filters: FilterTensors | None, which: torch.Tensor, nodes: torch.Tensor
) -> torch.Tensor:
    """Whether some allowed item is below each node."""
    if filters is None:
        return torch.ones_like(nodes, dtype=torch.bool)
    begin, end = trie.item_begin[nodes].long(), trie.item_end[nodes].long()
    return _before(filters, which, end) > _before(filters, which, begin)


def _edges(
    trie: TrieTensors, nodes: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Children of nodes [...], padded: child nodes, codes, legality, each [..., width]."""
    begin, end = trie.child_begin[nodes].long(), trie.child_begin[nodes + 1].long()
    edge = begin[..., None] + torch.arange(width, device=nodes.device)
    legal = edge < end[..., None]
    if trie.code.numel() == 0:
        return torch.zeros_like(edge), torch.full_like(edge, END), legal
    edge = edge.clamp(max=trie.code.numel() - 1)
    return edge + 1, trie.code[edge].long(), legal


def _columns(
    trie: TrieTensors, tokens: TokenTensors, nodes: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """Logits column of `codes` [..., K] below `nodes` [...], -1 for an end edge or no token."""
    depth = torch.searchsorted(trie.level_begin, nodes.to(torch.int32), right=True) - 1
    depth = depth.clamp(max=trie.num_levels - 1)[..., None]
    width = tokens.column.shape[1]
    known = (codes >= 0) & (codes < width)
    return torch.where(known, tokens.column[depth, codes.clamp(0, width - 1)], -1)


def trie_mask(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """logits [R, V] with -inf wherever a token is not legal after nodes [R] (out of place)."""
    rows, vocab = logits.shape
    at = nodes.clamp(min=0)
    child, code, legal = _edges(trie, at, tokens.column.shape[1] + 1)  # [R, K]
    if filters is not None:
        per = rows // filters.words.shape[0]
        which = torch.arange(rows, device=nodes.device) // max(per, 1)
        legal &= allowed(trie, filters, which[:, None], child)
    column = torch.where(code == END, tokens.terminator, _columns(trie, tokens, at, code))
    legal &= column >= 0
    # A leaf, or a prefix below which the filter allows nothing: only the terminator is left.
    empty = ~legal.any(1, keepdim=True)
    column = torch.where(empty, tokens.terminator, column)
    legal = (legal | empty) & (column >= 0)

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
    logits = logits.reshape(batch, beams, -1).float() / temperature  # [B, M, V]
    live = (nodes >= 0) & (scores > float("-inf"))  # [B, M]
    at = nodes.clamp(min=0)
    child, code, legal = _edges(trie, at, tokens.column.shape[1] + 1)  # [B, M, K]
    # A whole SID waits for the longer ones: it is its own, cost-free continuation.
    leaf = trie.child_begin[at] == trie.child_begin[at + 1]
    child = torch.where(leaf[..., None], at[..., None], child)
    code = torch.where(leaf[..., None], END, code)
    legal[..., 0] |= leaf
    which = torch.arange(batch, device=nodes.device)[:, None, None]
    legal &= allowed(trie, filters, which, child)
    column = _columns(trie, tokens, at, code)
    legal &= (column >= 0) | (code == END)

    picked = logits.gather(2, column.clamp(min=0))
    if normalize == "vocab":
        norm = logits.logsumexp(2)
    elif normalize == "level":
        depth = torch.searchsorted(trie.level_begin, at.to(torch.int32), right=True) - 1
        level = tokens.column[depth.clamp(max=trie.num_levels - 1)]  # [B, M, C]
        values = logits.gather(2, level.clamp(min=0))
        norm = values.masked_fill(level < 0, float("-inf")).logsumexp(2)
    else:
        norm = picked.masked_fill(~legal | (code == END), float("-inf")).logsumexp(2)
    gain = torch.where(code == END, 0.0, picked - norm[..., None])
    candidates = torch.where(legal & live[..., None], scores[..., None] + gain, float("-inf"))
    candidates = candidates.nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    return _best(candidates, child, code, num_beams)


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
