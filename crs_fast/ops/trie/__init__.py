"""The trie ops: what they compute, and every check, before any kernel is chosen.

The functions take the bundles of `tensors.py`; `torch.ops.crs_fast.*`, which `dispatch.py`
registers, take flat tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import torch

from ..dtypes import NATIVE_FLOATS
from . import dispatch, eager
from .checks import (
    TRIES,
    check_mask,
    check_mask_inplace,
    check_range,
    check_step,
    check_temperature,
    check_tensor,
    check_trie,
    check_walk,
    is_plain,
    remember_tokens,
)
from .tensors import NODE_BITS, NORMALIZE, FilterTensors, TokenTensors, TrieTensors

__all__ = [
    "NORMALIZE",
    "token_tensors",
    "trie_build",
    "trie_insert",
    "trie_logprob",
    "trie_mask",
    "trie_mask_",
    "trie_remove",
    "trie_rows",
    "trie_step",
    "trie_walk",
]


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
    if not isinstance(sids, torch.Tensor):
        raise ValueError(f"trie_build: sids must be a torch tensor (got {type(sids).__name__})")
    if (
        sids.ndim != 2
        or sids.dtype != torch.int64
        or sids.device.type != "cpu"
        or sids.layout != torch.strided
    ):
        raise ValueError(
            "trie_build: sids must be a dense int64 CPU tensor [N, L] "
            f"(got {sids.dtype} {tuple(sids.shape)} on {sids.device})"
        )
    if sids.shape[1] < 1:
        raise ValueError("trie_build: sids must have at least one level (got L = 0)")
    items = sids.shape[0]
    if not hasattr(num_sorted, "__index__") or not 0 <= num_sorted <= items:
        raise ValueError(
            f"trie_build: num_sorted must lie in 0 .. {items}, the rows of sids (got {num_sorted})"
        )
    if items >= 1 << NODE_BITS:
        raise ValueError(f"trie_build: sids must have fewer than 2^28 rows (got {items})")
    trie, order = dispatch.build(sids, num_sorted, progress)
    TRIES.remember(trie)
    return trie, order


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
    larger, order, at = dispatch.insert(trie, sids)
    TRIES.remember(larger)
    return larger, order, at


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
    check_range("trie_remove", "items", items, int(trie.level[-1, 1]))
    if bool((items.diff() <= 0).any()):
        raise ValueError("trie_remove: items must be distinct and ascend (got some that don't)")
    smaller = dispatch.remove(trie, items)
    TRIES.remember(smaller)
    return smaller


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
    check_walk("trie_walk", trie, codes)
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
    check_trie("trie_rows", trie)
    if trie.level.is_meta:
        raise ValueError("trie_rows: trie must hold values (got meta tensors)")
    num_items = int(trie.level[-1, 1])
    if items is not None:
        check_tensor("trie_rows", "items", items, trie.codes, (torch.int64,), 1)
        check_range("trie_rows", "items", items, num_items)
    shape = (num_items if items is None else items.numel(), trie.num_levels)
    if out is None:
        out = torch.empty(shape, dtype=torch.int64, device=trie.codes.device)
    elif not isinstance(out, torch.Tensor):
        raise ValueError(f"trie_rows: out must be a torch tensor (got {type(out).__name__})")
    elif out.shape != shape or not is_plain(out, trie.codes, torch.int64):
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
    filter_of_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """`trie_mask_` into a new tensor: only the legal logits are read."""
    check_mask("trie_mask", logits, nodes, trie, tokens, filters, filter_of_row)
    words, rank = filters if filters is not None else (None, None)
    return torch.ops.crs_fast.trie_mask(logits, nodes, *trie, *tokens, words, rank, filter_of_row)


def trie_mask_(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None = None,
    filter_of_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write -inf, in place, over every token that may not follow.

        node == -1:   logits[r, denied] = -inf              (outside a SID)
        node == -2:   nothing                               (`LEAVE`: not ours)
        else:         logits[r, all but legal children] = -inf
                      a leaf, or nothing allowed below: all but the terminator

    Args:
        logits: float32, bfloat16 or float16 [R, V]; rows may be strided.
        nodes: int64 [R], from `trie_walk`.
        trie, tokens: on the device of `logits`; columns must lie below V.
        filters: F bitmaps with R divisible by F; row r takes bitmap r // (R / F).
        filter_of_row: int64 [R], the bitmap of each row instead, so that rows share bitmaps and
            F is any number; -1 takes none.

    Returns:
        `logits`.
    """
    check_mask_inplace("trie_mask_", logits, nodes, trie, tokens, filters, filter_of_row)
    words, rank = filters if filters is not None else (None, None)
    torch.ops.crs_fast.trie_mask_(logits, nodes, *trie, *tokens, words, rank, filter_of_row)
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
    normalizers: torch.Tensor | None = None,
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
        normalizers: float32 [B * M], each row's logsumexp(logits / temperature) over the whole
            vocabulary where it is known already (`vocab_logsumexp`); then the logits may be those
            of one level's codes alone. Only with "vocab".

    Returns:
        scores float32, nodes, parents and codes int64, each [B, num_beams]. Where fewer legal
        continuations than beams exist the rest has score -inf, node -1, parent 0, code -1.
    """
    guard = check_step(
        "trie_step", logits, scores, nodes, trie, tokens, filters, num_beams, normalize,
        temperature, normalizers,
    )  # fmt: skip
    words, rank = filters if filters is not None else (None, None)
    best, following, parents, codes = dispatch.step(
        guard, logits, scores, nodes, *trie, *tokens, words, rank, num_beams, normalize,
        temperature, normalizers,
    )  # fmt: skip
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
    op, levels = "trie_logprob", trie.bits.shape[0]  # see check_tokens
    check_trie(op, trie)
    check_tensor(op, "logits", logits, trie.codes, NATIVE_FLOATS, 3)
    check_tensor(op, "sids", sids, trie.codes, (torch.int64,), 2)
    if sids.shape != logits.shape[:2] or not 1 <= sids.shape[1] <= levels:
        raise ValueError(
            f"{op}: sids must be [R, L] of logits [R, L, V], with at most {levels} levels "
            f"(got {tuple(sids.shape)} and {tuple(logits.shape)})"
        )
    check_temperature(op, temperature)
    check_mask(op, logits[:, 0], sids[:, 0], trie, tokens, filters)
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
        ValueError: no level, or tokens that are no integers from 0 on.
    """
    try:
        if not isinstance(token_ids, torch.Tensor):
            width = max(map(len, token_ids), default=0)
            token_ids = torch.tensor(
                [[*level, *[-1] * (width - len(level))] for level in token_ids], device="cpu"
            )
        given = torch.as_tensor(denied, device=device)
        terminator = index(terminator)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"token_tensors: token_ids, denied and terminator must be integers (got {error})"
        ) from None
    for name, values in (("token_ids", token_ids), ("denied", given)):
        if values.numel() and (values.is_floating_point() or values.is_complex()):
            raise ValueError(f"token_tensors: {name} must be integers (got {values.dtype})")
    column, masked = token_ids.to(device, torch.int64), given.to(torch.int64)
    if column.ndim != 2 or column.numel() == 0 or masked.ndim != 1:
        raise ValueError(
            "token_tensors: token_ids must be [L, C] and denied [n] "
            f"(got {tuple(column.shape)} and {tuple(masked.shape)})"
        )
    least, highest = torch.stack(torch.cat([column.flatten(), masked]).aminmax()).tolist()
    if min(least, terminator) < -1 or bool((masked < 0).any()):
        raise ValueError(
            "token_tensors: tokens must be >= 0, or -1 for none, which denied can't hold "
            f"(got {min(least, terminator)})"
        )
    made = TokenTensors(column, masked.contiguous(), terminator, max(highest, terminator) + 1)
    remember_tokens(made)
    return made


def _check_change(op: str, name: str, tensor: torch.Tensor, ndim: int, trie: TrieTensors) -> None:
    if isinstance(trie, TrieTensors) and trie.codes.device.type != "cpu":
        raise ValueError(f"{op}: the trie must be on the CPU (got {trie.codes.device})")
    check_trie(op, trie)
    check_tensor(op, name, tensor, trie.codes, (torch.int64,), ndim)
