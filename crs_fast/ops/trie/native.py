"""The calls of the trie ops into the native module, for the CPU and for CUDA.

Arguments were checked. `native` is the module or, in the tests, one whose CUDA kernels run on the
CPU. Whatever an address is taken of must live until the call is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..dtypes import native_dtype
from .tensors import FilterTensors, TokenTensors, TrieTensors

# A change of more than one item in so many costs less as a new build of all rows.
_REBUILD = 4
_POLL_SECONDS = 0.05
_CODES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def build(
    native: Any, sids: torch.Tensor, num_sorted: int, progress: Callable[[float], Any] | None
) -> tuple[TrieTensors, torch.Tensor]:
    sids = sids.contiguous()
    items, levels = sids.shape

    def report() -> None:
        if progress is not None:
            progress(builder.progress())

    builder = native.TrieBuilder(
        sids=sids.data_ptr(),
        num_items=items,
        levels=levels,
        num_sorted=num_sorted,
        threads=torch.get_num_threads(),
        poll=report,
        poll_seconds=_POLL_SECONDS,
    )
    order = torch.empty(items, dtype=torch.int32, device="cpu")
    builder.sort(order=order.data_ptr())
    trie = _allocated(builder.sizes, levels)
    builder.fill(_arrays(native, trie))
    if progress is not None:
        progress(1.0)
    return trie, order


def insert(
    native: Any, trie: TrieTensors, sids: torch.Tensor
) -> tuple[TrieTensors, torch.Tensor, torch.Tensor]:
    _, order = build(native, sids, 0, None)  # checks the rows too
    size, levels = sids.shape
    items = int(trie.level[-1, 1])
    if size * _REBUILD > items:
        old = torch.nn.functional.pad(_rows(native, trie), (0, levels - trie.num_levels), value=-1)
        made, both = build(native, torch.cat([old, sids]), 0, None)
        positions = (both >= items).nonzero().squeeze(1)
        return made, order, positions - torch.arange(size, device="cpu")
    ordered = sids[order.long()]
    at = torch.empty(size, dtype=torch.int64, device="cpu")
    change = native.TrieInsertion(
        trie=_trie(native, trie),
        rows=ordered.data_ptr(),
        size=size,
        levels=levels,
        threads=torch.get_num_threads(),
    )
    change.plan(at=at.data_ptr())
    return _filled(native, change, levels), order, at


def remove(native: Any, trie: TrieTensors, items: torch.Tensor) -> TrieTensors:
    items = items.contiguous()
    if items.numel() * _REBUILD > int(trie.level[-1, 1]):
        keep = torch.ones(int(trie.level[-1, 1]), dtype=torch.bool, device="cpu")
        keep[items] = False
        rest = _rows(native, trie, keep.nonzero().squeeze(1))
        return build(native, rest, rest.shape[0], None)[0]
    change = native.TrieRemoval(
        trie=_trie(native, trie),
        items=items.data_ptr(),
        size=items.numel(),
        threads=torch.get_num_threads(),
    )
    change.plan()
    return _filled(native, change, trie.num_levels)


def _rows(native: Any, trie: TrieTensors, items: torch.Tensor | None = None) -> torch.Tensor:
    size = int(trie.level[-1, 1]) if items is None else items.numel()
    out = torch.empty(size, trie.num_levels, dtype=torch.int64, device="cpu")
    rows(native, trie, items, out)
    return out


def _filled(native: Any, change: Any, levels: int) -> TrieTensors:
    trie = _allocated(change.sizes, levels)
    change.fill(_arrays(native, trie))
    return trie


def _allocated(sizes: Any, levels: int) -> TrieTensors:
    return TrieTensors(
        codes=torch.empty(sizes.codes, dtype=_CODES[sizes.code_bytes], device="cpu"),
        bits=torch.empty(levels, sizes.words, dtype=torch.int64, device="cpu"),
        rank=torch.empty(levels, sizes.words, dtype=torch.int32, device="cpu"),
        starts=torch.empty(sizes.starts, dtype=torch.int32, device="cpu"),
        level=torch.empty(levels + 1, 2, dtype=torch.int64, device="cpu"),
    )


def _arrays(native: Any, trie: TrieTensors) -> Any:
    return native.TrieArrays(**{name: t.data_ptr() for name, t in trie._asdict().items()})


def walk(native: Any, trie: TrieTensors, path: torch.Tensor) -> torch.Tensor:
    path = path.contiguous()
    rows, length = path.shape
    nodes = torch.empty(rows, dtype=torch.int64, device=path.device)
    arguments = {
        "trie": _trie(native, trie),
        "codes": path.data_ptr(),
        "rows": rows,
        "length": length,
        "nodes": nodes.data_ptr(),
    }
    if path.is_cuda:
        with torch.cuda.device(path.device):
            native.trie_walk_cuda(**arguments, stream=_stream(path))
    else:
        native.trie_walk(**arguments, threads=torch.get_num_threads())
    return nodes


def rows(native: Any, trie: TrieTensors, items: torch.Tensor | None, out: torch.Tensor) -> None:
    items = None if items is None else items.contiguous()
    native.trie_rows(
        trie=_trie(native, trie),
        items=0 if items is None else items.data_ptr(),
        size=out.shape[0],
        codes=out.data_ptr(),
        threads=torch.get_num_threads(),
    )


def mask(
    native: Any,
    out: torch.Tensor,
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
    filter_of_row: torch.Tensor | None,
) -> None:
    """Mask `logits` into `out`, both with adjacent columns; they may be one tensor."""
    nodes = nodes.contiguous()
    rows, vocab = logits.shape
    num_filters = 1 if filters is None else filters.words.shape[0]
    if filter_of_row is not None:
        # On a GPU nobody has looked at the values.
        filter_of_row = filter_of_row.clamp(-1, num_filters - 1).contiguous()
    args = native.MaskArgs(
        trie=_trie(native, trie),
        filter=_filter(native, filters),
        tokens=_tokens(native, tokens),
        rows_per_filter=max(1, rows // num_filters),
        filter_of_row=0 if filter_of_row is None else filter_of_row.data_ptr(),
        logits=logits.data_ptr(),
        out=out.data_ptr(),
        nodes=nodes.data_ptr(),
        rows=rows,
        vocab=vocab,
        row_stride=logits.stride(0),
        out_stride=out.stride(0),
        dtype=native_dtype(native, logits.dtype),
        threads=torch.get_num_threads(),
    )
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            native.trie_mask_cuda(args, _stream(logits))
    else:
        native.trie_mask(args)


def step(
    native: Any,
    logits: torch.Tensor,
    scores: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
    num_beams: int,
    normalize: str,
    temperature: float,
    normalizers: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """`logits` has adjacent columns."""
    scores, nodes = scores.contiguous(), nodes.contiguous()
    normalizers = None if normalizers is None else normalizers.contiguous()
    batch, beams = scores.shape
    out_scores = scores.new_empty(batch, num_beams)
    out_nodes, out_parents, out_codes = (nodes.new_empty(batch, num_beams) for _ in range(3))
    args = native.StepArgs(
        trie=_trie(native, trie),
        filter=_filter(native, filters),
        tokens=_tokens(native, tokens),
        normalize=getattr(native.Normalize, normalize),
        inverse_temperature=1.0 / temperature,
        logits=logits.data_ptr(),
        batch=batch,
        beams=beams,
        vocab=logits.shape[1],
        row_stride=logits.stride(0),
        dtype=native_dtype(native, logits.dtype),
        scores=scores.data_ptr(),
        nodes=nodes.data_ptr(),
        normalizers=0 if normalizers is None else normalizers.data_ptr(),
        out_beams=num_beams,
        out_scores=out_scores.data_ptr(),
        out_nodes=out_nodes.data_ptr(),
        out_parents=out_parents.data_ptr(),
        out_codes=out_codes.data_ptr(),
        threads=torch.get_num_threads(),
    )
    if logits.is_cuda:
        size = native.trie_step_workspace(args)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
        with torch.cuda.device(logits.device):
            native.trie_step_cuda(args, workspace.data_ptr(), _stream(logits))
    else:
        native.trie_step(args)
    return out_scores, out_nodes, out_parents, out_codes


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def _trie(native: Any, trie: TrieTensors) -> Any:
    levels, words = trie.bits.shape
    return native.Trie(
        codes=trie.codes.data_ptr(),
        bits=trie.bits.data_ptr(),
        rank=trie.rank.data_ptr(),
        starts=trie.starts.data_ptr(),
        level=trie.level.data_ptr(),
        levels=levels,
        words=words,
        code_bytes=trie.codes.element_size(),
    )


def _filter(native: Any, filters: FilterTensors | None) -> Any:
    if filters is None:
        return native.Filter(words=0, rank=0, stride=0)
    words, rank = filters
    return native.Filter(words=words.data_ptr(), rank=rank.data_ptr(), stride=words.shape[1])


def _tokens(native: Any, tokens: TokenTensors) -> Any:
    column, denied, terminator, _ = tokens
    return native.Tokens(
        column=column.data_ptr(),
        stride=column.stride(0),
        width=column.shape[1],
        terminator=terminator,
        denied=denied.data_ptr(),
        num_denied=denied.numel(),
    )
