"""Plain-PyTorch oracle of every trie op, and the fallback where no kernel was built.

Nothing here imports a wrapper. All but `trie_build` never wait for the device.
"""

from __future__ import annotations

import torch

from .nodes import allowed, are_held, before, begin_of, begins, ending, pack, span, unpack
from .tensors import END, LEAVE, NO_NODE, NODE_BITS, FilterTensors, TokenTensors, TrieTensors

_HIGHEST = torch.iinfo(torch.int32).max
# A depth with fewer nodes than one in so many items keeps a table of where they begin.
_SPARSE = 32


def trie_build(sids: torch.Tensor, num_sorted: int = 0) -> tuple[TrieTensors, torch.Tensor]:
    """Trie and order of sids int64 [N, L]; see `crs_fast.ops.trie.trie_build`."""
    _check_rows(sids)
    items = sids.shape[0]
    order = torch.arange(items, device="cpu")
    for column in sids.unbind(1)[::-1]:  # from the last level on, each time stable
        order = order[column[order].sort(stable=True).indices]
    if bool((order[order < num_sorted].diff() < 0).any()):
        raise ValueError(
            f"trie_build: the first num_sorted = {num_sorted} rows must be in order (got others)"
        )

    rows = sids[order]
    differs = torch.ones_like(rows, dtype=torch.bool)  # from the item before, in levels up to here
    differs[1:] = (rows[1:] != rows[:-1]).cumsum(1) > 0
    begins_node = (
        differs & (rows != END)
    ).t()  # [L, N]: items at which a node of depth l + 1 begins
    nodes = begins_node.sum(1)
    sparse = nodes * _SPARSE <= items
    first = torch.stack([nodes, nodes * sparse], 1)
    level = torch.nn.functional.pad(first.cumsum(0), (0, 0, 1, 0))  # [L + 1, 2]
    level[:-1, 1][~sparse] = -1
    level[-1, 1] = items

    codes = rows.t()[begins_node].to(_narrowest(int(sids.max()) if items else END))
    starts = begins_node[sparse].nonzero()[:, 1].to(torch.int32)
    return TrieTensors(codes, *_ranked(begins_node), starts, level), order.to(torch.int32)


def _ranked(marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """marks bool [L, N] as words int64 [L, W] and the marks before each, int32; position N has a
    word."""
    levels, items = marks.shape
    words = items // 64 + 1
    marks = torch.nn.functional.pad(marks, (0, words * 64 - items)).view(levels, words, 64)
    count = marks.sum(2)
    bits = (marks.long() << torch.arange(64, device="cpu")).sum(2)
    return bits, (count.cumsum(1) - count).to(torch.int32)


def _narrowest(highest: int) -> torch.dtype:
    if highest <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    return torch.int16 if highest <= torch.iinfo(torch.int16).max else torch.int32


def _check_rows(sids: torch.Tensor) -> None:
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
    problem = "must have no code after padding (got one)"
    if int(sids[row, 0]) == END:
        problem = "must hold at least one code (got only padding)"
    elif bool(outside[row].any()):
        got = int(sids[row][outside[row]][0])
        problem = f"must hold codes in [0, 2^31 - 1], -1 pads (got {got})"
    raise ValueError(f"trie_build: sids[{row}] {problem}")


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
    level, _, _, end, first, last = span(trie, nodes.clamp(min=0))
    base = trie.level[level, 0]
    low, high = first, last
    for _ in range(trie.codes.numel().bit_length()):
        middle = (low + high) // 2
        right = (middle < high) & (_code(trie, base + middle) < codes)
        low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
    found = (low < last) & (_code(trie, base + low) == codes) & (nodes >= 0)
    stop = torch.where(low + 1 < last, begin_of(trie, level, low + 1), end)
    return torch.where(found, pack(level + 1, begin_of(trie, level, low), stop), NO_NODE)


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
        k = before(trie.bits, trie.rank, level, items) + begins(trie, level, items) - 1
        at = torch.where(k < 0, -1, begin_of(trie, level, k.clamp(min=0)))
        # A SID that ended has no node here: the last one belongs to items before its prefix.
        ended = ended | (at < begin)
        out.append(torch.where(ended, END, _code(trie, trie.level[level, 0] + k.clamp(min=0))))
        begin = at
    return torch.stack(out, 1)


def trie_insert(
    trie: TrieTensors, sids: torch.Tensor
) -> tuple[TrieTensors, torch.Tensor, torch.Tensor]:
    """Rebuilt from all rows; see `crs_fast.ops.trie.trie_insert`."""
    old, levels = _all_rows(trie), sids.shape[1]
    _check_rows(sids)
    old = torch.nn.functional.pad(old, (0, levels - old.shape[1]), value=END)
    made, order = trie_build(torch.cat([old, sids]))
    positions = (order >= old.shape[0]).nonzero().squeeze(1)
    at = positions - torch.arange(positions.numel(), device="cpu")
    return made, order[positions] - old.shape[0], at


def trie_remove(trie: TrieTensors, items: torch.Tensor) -> TrieTensors:
    """Rebuilt from the rows that stay; see `crs_fast.ops.trie.trie_remove`."""
    rows = _all_rows(trie)
    keep = torch.ones(rows.shape[0], dtype=torch.bool, device="cpu")
    keep[items] = False
    return trie_build(rows[keep])[0]


def _all_rows(trie: TrieTensors) -> torch.Tensor:
    return trie_rows(trie, torch.arange(int(trie.level[-1, 1]), device="cpu"))


def _continuations(
    trie: TrieTensors, tokens: TokenTensors, nodes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What may follow nodes [...], padded: next nodes, codes, logits columns (-1 where none) and
    whether the entry exists, each [..., 1 + C]. Entry 0 ends the SID, or waits after its end."""
    width = tokens.column.shape[1]
    level, _, _, end, first, last = (x[..., None] for x in span(trie, nodes))
    k = first + torch.arange(width + 1, device=nodes.device)
    bounds = torch.where(k < last, begin_of(trie, level, k), end)  # [..., C + 1]
    child = pack(level + 1, bounds[..., :-1], bounds[..., 1:])
    code = _code(trie, trie.level[level, 0] + k[..., :-1])
    known = (k < last)[..., :-1] & (code < width)
    column = torch.where(known, tokens.column[level, code.clamp(0, width - 1)], -1)

    whole = (nodes >> (2 * NODE_BITS) == trie.num_levels)[..., None]
    stop_begin, stop_end = (x[..., None] for x in ending(trie, nodes))
    stop = torch.where(whole, nodes[..., None], pack(level + 1, stop_begin, stop_end))
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
    filter_of_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """logits [R, V] with -inf wherever a token is not legal after nodes [R]."""
    rows, vocab = logits.shape
    is_node = are_held(trie, nodes)
    at = torch.where(is_node, nodes, 0)
    following, _, column, legal = _continuations(trie, tokens, at)  # [R, K]
    if filters is not None:
        num_filters = filters.words.shape[0]
        which = torch.arange(rows, device=nodes.device) // max(rows // num_filters, 1)
        if filter_of_row is not None:
            which = filter_of_row.clamp(-1, num_filters - 1)
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
    keep = torch.where((nodes == NO_NODE)[:, None], free, keep & is_node[:, None])
    keep = keep | (nodes == LEAVE)[:, None]
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
    normalizers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One constrained beam step; see `crs_fast.ops.trie.trie_step`."""
    batch, beams = scores.shape
    logits = logits.reshape(batch, beams, logits.shape[1]).float() / temperature  # [B, M, V]
    live = are_held(trie, nodes) & (scores > float("-inf"))  # [B, M]
    at = torch.where(live, nodes, 0)
    following, code, column, legal = _continuations(trie, tokens, at)  # [B, M, K]
    which = torch.arange(batch, device=nodes.device)[:, None, None]
    legal = legal & allowed(trie, filters, which, following)

    picked = logits.gather(2, column.clamp(min=0))
    if normalizers is not None:
        norm = normalizers.view(batch, beams)
    elif normalize == "vocab":
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


def trie_logprob(
    logits: torch.Tensor,
    sids: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    temperature: float = 1.0,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """Log-probs of SIDs among their legal continuations; see `crs_fast.ops.trie.trie_logprob`."""
    rows, levels = sids.shape
    per = rows // (1 if filters is None else filters.words.shape[0])
    which = torch.arange(rows, device=sids.device)[:, None] // max(per, 1)
    node = torch.zeros_like(sids[:, 0])  # -1 behind the end and off the trie
    out = []
    for level in range(levels):
        at = node.clamp(min=0)
        following, code, column, legal = (x[:, 1:] for x in _continuations(trie, tokens, at))
        legal = legal & allowed(trie, filters, which, following) & (node >= 0)[:, None]
        values = logits[:, level].float().gather(1, column.clamp(min=0)) / temperature
        chosen = legal & (code == sids[:, level, None])
        share = values.masked_fill(~legal, -torch.inf).softmax(1)
        value = torch.where(chosen, share, 0.0).sum(1).log()
        over = (node < 0) | (sids[:, level] == END)
        out.append(torch.where(over, 0.0, torch.where(chosen.any(1), value, -torch.inf)))
        stop = over | ~chosen.any(1)
        node = torch.where(stop, NO_NODE, torch.where(chosen, following, 0).sum(1))
    return torch.stack(out, 1)


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
