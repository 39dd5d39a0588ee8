"""The trie ops: checks, registration with torch, and the way into the native module.

`torch.ops.crs_fast.*` take flat tensors; the functions below take the bundles of `tensors.py`.
Registered for the CPU and CUDA with fake implementations, so they work under
`torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

import torch

from crs_fast import _native

from . import reference
from .reference import NORMALIZE
from .tensors import FilterTensors, TokenTensors, TrieTensors

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MINUS_INF_BITS = {torch.float32: 0xFF800000, torch.bfloat16: 0xFF80, torch.float16: 0xFC00}

_TRIE = "Tensor child_begin, Tensor code, Tensor item_begin, Tensor item_end, Tensor level_begin"
_TOKENS = "Tensor column, Tensor denied, int terminator, int num_columns"
_FILTERS = "Tensor? words, Tensor? rank"

LIBRARY = torch.library.Library("crs_fast", "DEF")
LIBRARY.define(f"trie_walk({_TRIE}, Tensor codes) -> Tensor")
LIBRARY.define(f"trie_mask_(Tensor(a!) logits, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}) -> ()")
LIBRARY.define(
    f"trie_step(Tensor logits, Tensor scores, Tensor nodes, {_TRIE}, {_TOKENS}, int num_beams, "
    f"str normalize, float temperature, {_FILTERS}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def trie_build(sids: torch.Tensor) -> tuple[TrieTensors, torch.Tensor]:
    """Sort SIDs and lay the trie out breadth-first, in C++.

        order = stable_argsort(sids)            # lexicographic, -1 first
        for level: split every node's item range into runs of one code

    Args:
        sids: int64 [N, L] on the CPU, -1 pads ragged rows.

    Returns:
        The trie, and order int32 [N]: sorted position -> row of `sids`.

    Raises:
        ValueError: a code outside [0, 2^31 - 2], an empty row, a code after padding.
        RuntimeError: the native module was not built.
    """
    if sids.ndim != 2 or sids.dtype != torch.int64 or sids.device.type != "cpu":
        raise ValueError(
            "trie_build: sids must be an int64 CPU tensor [N, L] "
            f"(got {sids.dtype} {tuple(sids.shape)} on {sids.device})"
        )
    if sids.shape[1] < 1:
        raise ValueError("trie_build: sids must have at least one level (got L = 0)")
    native = _native.load()
    if native is None:
        raise RuntimeError(f"trie_build: needs the native module: {_native.BUILD_HINT}")
    sids = sids.contiguous()
    arrays = native.trie_build(sids.data_ptr(), *sids.shape)
    nodes, levels = arrays.num_nodes, sids.shape[1]
    sizes = (nodes + 1, nodes - 1, nodes, nodes, levels + 2, sids.shape[0])
    *trie, order = (torch.empty(size, dtype=torch.int32) for size in sizes)
    arrays.copy_to(*(t.data_ptr() for t in (*trie, order)))
    return TrieTensors(*trie), order


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
    _check("trie_walk", "codes", codes, trie.code, (torch.int64,), 2)
    return torch.ops.crs_fast.trie_walk(*trie, codes)


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
    _check("trie_mask_", "logits", logits, trie.code, tuple(DTYPES), 2)
    _check("trie_mask_", "nodes", nodes, trie.code, (torch.int64,), 1)
    if nodes.shape[0] != logits.shape[0]:
        raise ValueError(
            f"trie_mask_: nodes must have one entry a row of logits, {logits.shape[0]} "
            f"(got {nodes.shape[0]})"
        )
    _check_tokens("trie_mask_", logits, trie, tokens)
    if filters is not None and (
        filters.words.shape[0] == 0 or logits.shape[0] % filters.words.shape[0]
    ):
        raise ValueError(
            f"trie_mask_: filters must divide the {logits.shape[0]} rows evenly "
            f"(got {filters.words.shape[0]})"
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
        keep the num_beams best a request; ties to the lower parent, then the lower code

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
        filters: one bitmap a request.

    Returns:
        scores float32, nodes, parents and codes int64, each [B, num_beams]. Where fewer legal
        continuations than beams exist the rest has score -inf, node -1, parent 0, code -1.
    """
    _check("trie_step", "logits", logits, trie.code, tuple(DTYPES), 2)
    _check("trie_step", "scores", scores, trie.code, (torch.float32,), 2)
    _check("trie_step", "nodes", nodes, trie.code, (torch.int64,), 2)
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
    if filters is not None and filters.words.shape[0] != scores.shape[0]:
        raise ValueError(
            f"trie_step: filters must hold one bitmap a request, {scores.shape[0]} "
            f"(got {filters.words.shape[0]})"
        )
    words, rank = filters if filters is not None else (None, None)
    return torch.ops.crs_fast.trie_step(
        logits, scores, nodes, *trie, *tokens, num_beams, normalize, temperature, words, rank
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
        expected = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {expected} (got {got})")
    if tensor.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions (got {tuple(tensor.shape)})")
    if tensor.device != beside.device:
        raise ValueError(
            f"{op}: {name} must be on the trie's device {beside.device} (got {tensor.device})"
        )


def _check_tokens(op: str, logits: torch.Tensor, trie: TrieTensors, tokens: TokenTensors) -> None:
    if logits.shape[1] < tokens.num_columns:
        raise ValueError(
            f"{op}: logits must have at least {tokens.num_columns} columns, the highest token of "
            f"the vocabulary plus one (got {logits.shape[1]})"
        )
    if tokens.column.shape[0] < trie.num_levels:
        raise ValueError(
            f"{op}: the vocabulary must have the trie's {trie.num_levels} levels "
            f"(got {tokens.column.shape[0]})"
        )


def _views(native, trie, tokens=None, words=None, rank=None):
    """The native views of flat op arguments. The tensors must outlive the call."""
    child_begin, code, item_begin, item_end, level_begin = trie
    view = native.Trie(
        child_begin.data_ptr(),
        code.data_ptr(),
        item_begin.data_ptr(),
        item_end.data_ptr(),
        level_begin.data_ptr(),
        level_begin.numel() - 2,
    )
    if tokens is None:
        return view
    column, denied, terminator = tokens[:3]
    token_view = native.Tokens(
        column.data_ptr(),
        column.stride(0),
        column.shape[1],
        terminator,
        denied.data_ptr(),
        denied.numel(),
    )
    if words is None:
        return view, native.Filter(0, 0, 0), token_view
    return view, native.Filter(words.data_ptr(), rank.data_ptr(), words.shape[1]), token_view


def _bundles(trie, tokens, words, rank):
    filters = None if words is None else FilterTensors(words, rank)
    return TrieTensors(*trie), TokenTensors(*tokens), filters


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """Rows may be any distance apart; within a row logits must be adjacent."""
    return logits if logits.stride(1) == 1 or logits.shape[1] <= 1 else logits.contiguous()


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def _walk(cb, code, ib, ie, lb, codes):
    native = _native.load()
    if native is None or (codes.is_cuda and not _native.has_cuda()):
        return reference.trie_walk(TrieTensors(cb, code, ib, ie, lb), codes)
    codes = codes.contiguous()
    nodes = torch.empty(codes.shape[0], dtype=torch.int64, device=codes.device)
    args = (_views(native, (cb, code, ib, ie, lb)), codes.data_ptr(), *codes.shape)
    if codes.is_cuda:
        with torch.cuda.device(codes.device):
            native.trie_walk_cuda(*args, nodes.data_ptr(), _stream(codes))
    else:
        native.trie_walk(*args, nodes.data_ptr())
    return nodes


def _mask(logits, nodes, cb, code, ib, ie, lb, column, denied, terminator, columns, words, rank):
    trie, tokens = (cb, code, ib, ie, lb), (column, denied, terminator, columns)
    native = _native.load()
    rows = _rows(logits)
    if native is None or (logits.is_cuda and not _native.has_cuda()):
        if logits.is_cuda:
            _native.warn_no_cuda_kernels("trie_mask_")
        bundles = _bundles(trie, tokens, words, rank)
        logits.copy_(reference.trie_mask(logits, nodes, *bundles))
        return
    views = _views(native, trie, tokens, words, rank)
    nodes = nodes.contiguous()
    args = native.MaskArgs(
        *views,
        max(1, rows.shape[0] // (1 if words is None else words.shape[0])),
        rows.data_ptr(),
        nodes.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        rows.stride(0),
        rows.element_size(),
        MINUS_INF_BITS[rows.dtype],
    )
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            native.trie_mask_cuda(args, _stream(logits))
    else:
        native.trie_mask(args)
    if rows is not logits:
        logits.copy_(rows)


def _step_reference(
    logits, scores, nodes, cb, code, ib, ie, lb, column, denied, terminator, columns, num_beams,
    normalize, temperature, words, rank,
):  # fmt: skip
    trie, tokens, filters = _bundles(
        (cb, code, ib, ie, lb), (column, denied, terminator, columns), words, rank
    )
    return reference.trie_step(
        logits, scores, nodes, trie, tokens, num_beams, normalize, temperature, filters
    )


def _step(
    logits, scores, nodes, cb, code, ib, ie, lb, column, denied, terminator, columns, num_beams,
    normalize, temperature, words, rank,
):  # fmt: skip
    native = _native.load()
    if native is None:
        return _step_reference(
            logits, scores, nodes, cb, code, ib, ie, lb, column, denied, terminator, columns,
            num_beams, normalize, temperature, words, rank,
        )  # fmt: skip
    views = _views(
        native, (cb, code, ib, ie, lb), (column, denied, terminator, columns), words, rank
    )
    logits, scores, nodes = _rows(logits), scores.contiguous(), nodes.contiguous()
    batch, beams = scores.shape
    out_scores = torch.empty(batch, num_beams, dtype=torch.float32)
    out = [torch.empty(batch, num_beams, dtype=torch.int64) for _ in range(3)]
    native.trie_step(
        native.StepArgs(
            *views,
            NORMALIZE.index(normalize),
            1.0 / temperature,
            logits.data_ptr(),
            batch,
            beams,
            logits.shape[1],
            logits.stride(0),
            DTYPES[logits.dtype],
            scores.data_ptr(),
            nodes.data_ptr(),
            num_beams,
            out_scores.data_ptr(),
            *(t.data_ptr() for t in out),
        )
    )
    return (out_scores, *out)


def _walk_fake(cb, code, ib, ie, lb, codes):
    return codes.new_empty(codes.shape[0])


def _mask_fake(logits, nodes, *rest):
    return None


def _step_fake(
    logits, scores, nodes, cb, code, ib, ie, lb, column, denied, terminator, columns, num_beams,
    normalize, temperature, words, rank,
):  # fmt: skip
    shape = (scores.shape[0], num_beams)
    return (scores.new_empty(shape), *(nodes.new_empty(shape) for _ in range(3)))


for _name, _cpu, _cuda, _fake in (
    ("trie_walk", _walk, _walk, _walk_fake),
    ("trie_mask_", _mask, _mask, _mask_fake),
    # The CUDA beam step is the reference: its fused kernel does not exist yet.
    ("trie_step", _step, _step_reference, _step_fake),
):
    LIBRARY.impl(_name, _cpu, "CPU")
    LIBRARY.impl(_name, _cuda, "CUDA")
    torch.library.register_fake(f"crs_fast::{_name}", _fake, lib=LIBRARY)
