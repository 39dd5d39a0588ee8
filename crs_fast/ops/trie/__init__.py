"""The trie ops: what they compute, and every check, before any kernel is chosen.

The functions take the bundles of `tensors.py`; `torch.ops.crs_fast.*`, which `dispatch.py`
registers, take flat tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..dtypes import NATIVE_FLOATS, name_of
from . import dispatch, eager
from .tensors import NODE_BITS, NORMALIZE, FilterTensors, TokenTensors, TrieTensors


def trie_build(
    sids: torch.Tensor, num_sorted: int = 0, progress: Callable[[float], Any] | None = None
) -> tuple[TrieTensors, torch.Tensor]:
    """Sort SIDs and lay the trie out, in C++ on all threads (else in PyTorch).

        order = stable_argsort(sids)            # lexicographic, -1 first
        for each depth: mark the items at which the prefix changes, list their codes

    Args:
        sids: int64 [N, L] on the CPU, -1 pads ragged rows.
        num_sorted: so many leading rows are in order already, which is checked; where all are,
            nothing is sorted. `trie_insert` adds to a trie without sorting its items.
        progress: called now and then with the finished share, 0 to 1. What it raises ends the
            build, as Ctrl-C does.

    Returns:
        The trie, and order int32 [N]: sorted position -> row of `sids`.

    Raises:
        ValueError: 2^28 rows or more, more than 127 levels, a code outside [0, 2^31 - 1], an empty
            row, a code after padding.
    """
    if sids.ndim != 2 or sids.dtype != torch.int64 or sids.device.type != "cpu":
        raise ValueError(
            "trie_build: sids must be an int64 CPU tensor [N, L] "
            f"(got {sids.dtype} {tuple(sids.shape)} on {sids.device})"
        )
    if sids.shape[1] < 1:
        raise ValueError("trie_build: sids must have at least one level (got L = 0)")
    items = sids.shape[0]
    if not 0 <= num_sorted <= items:
        raise ValueError(
            f"trie_build: num_sorted must lie in 0 .. {items}, the rows of sids (got {num_sorted})"
        )
    return dispatch.build(sids, num_sorted, progress)


def trie_insert(
    trie: TrieTensors, sids: torch.Tensor
) -> tuple[TrieTensors, torch.Tensor, torch.Tensor]:
    """The trie with more items, in C++ on all threads: only these are sorted, what stands between
    them is copied.

        order = stable_argsort(sids)
        for j in range(n): at[j] = the number of items in the trie whose SIDs are not above
                                   sids[order[j]]
        insert bits and codes at `at`

    Args:
        trie: on the CPU.
        sids: int64 [n, L'] on the CPU, -1 pads; L' is at least the trie's levels.

    Returns:
        The trie that `trie_build` makes of the rows of both, the new ones last; order int32 [n]:
        sorted position -> row of `sids`; and at int64 [n], ascending: the new item j stands at
        position at[j] + j.

    Raises:
        ValueError: as `trie_build`, fewer levels than the trie's, or 2^28 items or more.
    """
    _check_change("trie_insert", "sids", sids, 2, trie)
    items = int(trie.level[-1, 1]) + sids.shape[0]
    if items >= 1 << NODE_BITS:
        raise ValueError(f"trie_insert: the trie must have fewer than 2^28 items (got {items})")
    if sids.shape[1] < trie.num_levels:
        raise ValueError(
            f"trie_insert: sids must have at least the trie's {trie.num_levels} levels "
            f"(got {sids.shape[1]})"
        )
    return dispatch.insert(trie, sids)


def trie_remove(trie: TrieTensors, items: torch.Tensor) -> TrieTensors:
    """The trie without some items, in C++ on all threads: what stands between them is copied.

        keep[items] = False
        trie_build(trie_rows(trie)[keep])

    Args:
        trie: on the CPU.
        items: int64 [n] on the CPU, distinct positions in sorted SID order, ascending.

    Raises:
        ValueError: tensors of another dtype, shape or device, or other positions.
    """
    _check_change("trie_remove", "items", items, 1, trie)
    _check_range("trie_remove", "items", items, int(trie.level[-1, 1]))
    if bool((items.diff() <= 0).any()):
        raise ValueError("trie_remove: items must be distinct and ascend (got some that don't)")
    return dispatch.remove(trie, items)


def trie_walk(trie: TrieTensors, codes: torch.Tensor) -> torch.Tensor:
    """The node that each row of codes leads to.

        node = root
        for code in codes[r]: stop at -1, else node = child(node, code)

    Args:
        trie: on the device of `codes`.
        codes: int64 [R, n].

    Returns:
        nodes int64 [R]; -1 where the trie has no such path.
    """
    _check("trie_walk", "codes", codes, trie.codes, (torch.int64,), 2)
    return torch.ops.crs_fast.trie_walk(*trie, codes)


def trie_rows(
    trie: TrieTensors, items: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The SIDs of items, from the trie alone.

    Args:
        trie: on any device.
        items: int64 [n], positions in sorted SID order; None means all.
        out: contiguous int64 [n, L] to write to.

    Returns:
        int64 [n, L] on the trie's device, -1 pads.

    Raises:
        ValueError: positions outside 0 .. N - 1, or tensors of another dtype, shape or device.
    """
    num_items = int(trie.level[-1, 1])
    if items is not None:
        _check("trie_rows", "items", items, trie.codes, (torch.int64,), 1)
        _check_range("trie_rows", "items", items, num_items)
    shape = (num_items if items is None else items.numel(), trie.num_levels)
    if out is None:
        out = torch.empty(shape, dtype=torch.int64, device=trie.codes.device)
    elif out.shape != shape or not _plain(out, trie.codes, torch.int64):
        raise ValueError(
            f"trie_rows: out must be contiguous int64 {list(shape)} on the trie's device "
            f"{trie.codes.device} (got {out.dtype} {tuple(out.shape)} on {out.device})"
        )
    dispatch.rows(trie, items, out)
    return out


def trie_mask(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """`trie_mask_` into a new tensor: only the legal logits are read."""
    _check_mask("trie_mask", logits, nodes, trie, tokens, filters)
    words, rank = filters if filters is not None else (None, None)
    return torch.ops.crs_fast.trie_mask(logits, nodes, *trie, *tokens, words, rank)


def trie_mask_(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """Write -inf, in place, over every token that may not follow.

        node == -1:   logits[r, denied] = -inf              (outside a SID)
        else:         logits[r, all but legal children] = -inf
                      a leaf, or nothing allowed below: all but the terminator

    Args:
        logits: float32, bfloat16 or float16 [R, V]; rows may be strided.
        nodes: int64 [R], from `trie_walk`.
        trie, tokens: on the device of `logits`; columns must lie below V.
        filters: F bitmaps with R divisible by F; row r takes bitmap r // (R / F).

    Returns:
        `logits`.
    """
    _check_mask("trie_mask_", logits, nodes, trie, tokens, filters)
    rows, vocab = logits.shape
    if rows > 1 and logits.stride(1) == 1 and logits.stride(0) < vocab:
        raise ValueError(
            f"trie_mask_: rows of logits must not overlap (got strides {logits.stride()})"
        )
    words, rank = filters if filters is not None else (None, None)
    torch.ops.crs_fast.trie_mask_(logits, nodes, *trie, *tokens, words, rank)
    return logits


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
    """One step of beam search over the legal continuations only.

        lp(m, c)  = logits[m, column[c]] / temperature - logsumexp(vocab | level | legal)
        candidate = scores[m] + lp(m, c)        for every legal child c of nodes[m]
        keep the num_beams best per request; ties to the lower parent, then the lower code

    A leaf, and the end of a SID that prefixes a longer one, continue at no cost with code -1.

    Args:
        logits: float32, bfloat16 or float16 [B * M, V]; rows may be strided.
        scores: float32 [B, M], sums of log-probs; -inf marks a dead beam.
        nodes: int64 [B, M]; -1 marks a dead beam.
        trie, tokens: on the device of `logits`.
        num_beams: beams to keep.
        normalize: what the log-softmax runs over: "vocab" (all V columns, as HF beam search),
            "level" (columns of the level's codes) or "legal" (legal children).
        temperature: > 0.
        filters: one bitmap per request.

    Returns:
        scores float32, nodes, parents and codes int64, each [B, num_beams]. Where fewer legal
        continuations than beams exist the rest has score -inf, node -1, parent 0, code -1.
    """
    _check("trie_step", "logits", logits, trie.codes, NATIVE_FLOATS, 2)
    _check("trie_step", "scores", scores, trie.codes, (torch.float32,), 2)
    _check("trie_step", "nodes", nodes, trie.codes, (torch.int64,), 2)
    if nodes.shape != scores.shape or logits.shape[0] != scores.numel():
        raise ValueError(
            "trie_step: logits [B * M, V], scores [B, M] and nodes [B, M] must agree "
            f"(got {tuple(logits.shape)}, {tuple(scores.shape)}, {tuple(nodes.shape)})"
        )
    _check_tokens("trie_step", logits, trie, tokens)
    if num_beams < 1 or not temperature > 0:
        raise ValueError(
            "trie_step: num_beams must be at least 1 and temperature above 0 "
            f"(got {num_beams}, {temperature})"
        )
    if normalize not in NORMALIZE:
        raise ValueError(f"trie_step: normalize must be one of {NORMALIZE} (got {normalize!r})")
    _check_filters("trie_step", filters, trie)
    if filters is not None and filters.words.shape[0] != scores.shape[0]:
        raise ValueError(
            f"trie_step: filters must hold one bitmap per request, {scores.shape[0]} "
            f"(got {filters.words.shape[0]})"
        )
    words, rank = filters if filters is not None else (None, None)
    best, following, parents, codes = dispatch.step(
        logits, scores, nodes, *trie, *tokens, words, rank, num_beams, normalize, temperature
    )
    return best, following, parents, codes


def trie_logprob(
    logits: torch.Tensor,
    sids: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    temperature: float = 1.0,
    filters: FilterTensors | None = None,
) -> torch.Tensor:
    """Log-probs of given SIDs among what the trie allows, differentiable with respect to the
    logits: what a policy that decodes under the constraint gave the SIDs that it sampled.

        for each level:  lp = logits[r, l, column[code]] / temperature - logsumexp(legal children)
                         node = child(node, code)

    Without the constraint's normalisation a policy gradient over constrained rollouts is
    off-policy. What `trie_step` adds up with `normalize="legal"`.

    Args:
        logits: float32, bfloat16 or float16 [R, L, V]: those from which the code of each level is
            drawn.
        sids: codes int64 [R, L], -1 behind the end of a SID; a prefix is allowed.
        trie, tokens: on the device of `logits`.
        temperature: > 0; that of the rollout.
        filters: F bitmaps with R divisible by F; row r takes bitmap r // (R / F).

    Returns:
        float32 [R, L], which adds up to the log-prob of a SID; 0 behind its end, -inf at the code
        with which it leaves the catalogue or the filter.

    Raises:
        ValueError: tensors of another dtype, shape or device, or more levels than the trie has.
    """
    op = "trie_logprob"
    _check(op, "logits", logits, trie.codes, NATIVE_FLOATS, 3)
    _check(op, "sids", sids, trie.codes, (torch.int64,), 2)
    if sids.shape != logits.shape[:2] or not 1 <= sids.shape[1] <= trie.num_levels:
        raise ValueError(
            f"{op}: sids must be [R, L] of logits [R, L, V], with at most {trie.num_levels} levels "
            f"(got {tuple(sids.shape)} and {tuple(logits.shape)})"
        )
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0 (got {temperature})")
    _check_mask(op, logits[:, 0], sids[:, 0], trie, tokens, filters)
    return eager.trie_logprob(logits, sids, trie, tokens, temperature, filters)


def token_tensors(
    token_ids: torch.Tensor | Sequence[Sequence[int]],
    terminator: int = -1,
    denied: torch.Tensor | Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> TokenTensors:
    """Where codes stand among the logits, for those who use the ops alone.

    Args:
        token_ids: `token_ids[l][c]` is the token of code c at level l, -1 where none stands for
            it; levels may be of unequal length.
        terminator: the token forced after a whole SID, -1 where there is none.
        denied: the tokens masked in rows that stand outside a SID.

    Raises:
        ValueError: no level, or a token below -1.
    """
    if not isinstance(token_ids, torch.Tensor):
        width = max(map(len, token_ids), default=0)
        token_ids = torch.tensor(
            [[*level, *[-1] * (width - len(level))] for level in token_ids], device="cpu"
        )
    column = token_ids.to(device, torch.int64)
    masked = torch.as_tensor(denied, dtype=torch.int64, device=device)
    if column.ndim != 2 or column.numel() == 0 or masked.ndim != 1:
        raise ValueError(
            "token_tensors: token_ids must be [L, C] and denied [n] "
            f"(got {tuple(column.shape)} and {tuple(masked.shape)})"
        )
    least, highest = torch.stack(torch.cat([column.flatten(), masked]).aminmax()).tolist()
    if least < -1:
        raise ValueError(f"token_tensors: tokens must be >= 0, or -1 for none (got {least})")
    return TokenTensors(column, masked, terminator, max(highest, terminator) + 1)


def _check_mask(
    op: str,
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
) -> None:
    _check(op, "logits", logits, trie.codes, NATIVE_FLOATS, 2)
    _check(op, "nodes", nodes, trie.codes, (torch.int64,), 1)
    if nodes.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{op}: nodes must have one entry a row of logits, {logits.shape[0]} "
            f"(got {nodes.shape[0]})"
        )
    _check_tokens(op, logits, trie, tokens)
    _check_filters(op, filters, trie)
    if filters is not None and (
        filters.words.shape[0] == 0 or logits.shape[0] % filters.words.shape[0]
    ):
        raise ValueError(
            f"{op}: filters must divide the {logits.shape[0]} rows evenly "
            f"(got {filters.words.shape[0]})"
        )


def _check(
    op: str,
    name: str,
    tensor: torch.Tensor,
    beside: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    ndim: int,
) -> None:
    if tensor.dtype not in dtypes:
        expected = ", ".join(map(name_of, dtypes))
        raise ValueError(f"{op}: {name} must be {expected} (got {name_of(tensor.dtype)})")
    if tensor.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions (got {tuple(tensor.shape)})")
    if tensor.device != beside.device:
        raise ValueError(
            f"{op}: {name} must be on the trie's device {beside.device} (got {tensor.device})"
        )


def _check_change(op: str, name: str, tensor: torch.Tensor, ndim: int, trie: TrieTensors) -> None:
    _check(op, name, tensor, trie.codes, (torch.int64,), ndim)
    if trie.codes.device.type != "cpu":
        raise ValueError(f"{op}: the trie must be on the CPU (got {trie.codes.device})")


def _check_range(op: str, name: str, positions: torch.Tensor, size: int) -> None:
    if positions.numel() == 0:
        return
    least, most = torch.stack(positions.aminmax()).tolist()
    if not 0 <= least <= most < size:
        raise ValueError(f"{op}: {name} must lie in 0 .. {size - 1} (got {least} .. {most})")


def _check_tokens(op: str, logits: torch.Tensor, trie: TrieTensors, tokens: TokenTensors) -> None:
    if logits.shape[1] < tokens.num_columns:
        raise ValueError(
            f"{op}: logits must have at least {tokens.num_columns} columns, the highest token of "
            f"the vocabulary plus one (got {logits.shape[1]})"
        )
    column = tokens.column
    aligned = column.dtype == torch.int64 and (column.shape[1] == 1 or column.stride(1) == 1)
    if not (aligned and column.device == trie.codes.device):
        raise ValueError(
            f"{op}: the vocabulary's column must be int64 on the trie's device "
            f"{trie.codes.device}, rows adjacent (got {column.dtype} on {column.device})"
        )
    if not _plain(tokens.denied, trie.codes, torch.int64):
        raise ValueError(
            f"{op}: the vocabulary's denied must be contiguous int64 on the trie's device "
            f"{trie.codes.device} (got {tokens.denied.dtype} on {tokens.denied.device})"
        )
    if tokens.column.shape[0] < trie.num_levels:
        raise ValueError(
            f"{op}: the vocabulary must have the trie's {trie.num_levels} levels "
            f"(got {tokens.column.shape[0]})"
        )


def _check_filters(op: str, filters: FilterTensors | None, trie: TrieTensors) -> None:
    if filters is None:
        return
    words, rank = filters
    if words.shape[1] != trie.bits.shape[1] or rank.shape != words.shape:
        raise ValueError(
            f"{op}: filters must be made for this trie, with {trie.bits.shape[1]} words per bitmap "
            f"(got {tuple(words.shape)} and {tuple(rank.shape)})"
        )
    if not (_plain(words, trie.codes, torch.int64) and _plain(rank, trie.codes, torch.int32)):
        raise ValueError(
            f"{op}: filters must be contiguous int64 words and int32 ranks on the trie's device "
            f"{trie.codes.device} (got {words.dtype} and {rank.dtype} on {words.device})"
        )


def _plain(tensor: torch.Tensor, beside: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a kernel may take the tensor's address."""
    return tensor.dtype == dtype and tensor.device == beside.device and tensor.is_contiguous()
