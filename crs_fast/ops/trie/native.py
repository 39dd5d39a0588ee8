"""Registration of the trie ops with torch, and the way into the native module.

`torch.ops.crs_fast.trie_*` take the bundles of `tensors.py` spread out flat. Registered for the CPU
and CUDA with fake implementations, so they work under `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from crs_fast import _native

from . import reference
from .reference import NORMALIZE
from .tensors import FilterTensors, TokenTensors, TrieTensors

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MINUS_INF_BITS = {torch.float32: 0xFF800000, torch.bfloat16: 0xFF80, torch.float16: 0xFC00}
# What the CUDA step holds of a request in shared memory; wider requests take the reference.
_CUDA_BEAMS = 1024

_TRIE = "Tensor codes, Tensor bits, Tensor rank, Tensor starts, Tensor level"
_TOKENS = "Tensor column, Tensor denied, int terminator, int num_columns"
_FILTERS = "Tensor? words, Tensor? filter_rank"
_NUM_TRIE, _NUM_TOKENS = len(TrieTensors._fields), len(TokenTensors._fields)

LIBRARY = torch.library.Library("crs_fast", "DEF")
LIBRARY.define(f"trie_walk({_TRIE}, Tensor path) -> Tensor")
LIBRARY.define(f"trie_mask(Tensor logits, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}) -> Tensor")
LIBRARY.define(f"trie_mask_(Tensor(a!) logits, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}) -> ()")
LIBRARY.define(
    f"trie_step(Tensor logits, Tensor scores, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}, "
    "int num_beams, str normalize, float temperature) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _bundles(flat: tuple[Any, ...]) -> tuple[TrieTensors, TokenTensors, FilterTensors | None]:
    """The bundles that stand, spread out, at the end of an op's tensors."""
    trie, rest = TrieTensors(*flat[:_NUM_TRIE]), flat[_NUM_TRIE:]
    tokens, (words, rank) = TokenTensors(*rest[:_NUM_TOKENS]), rest[_NUM_TOKENS:]
    return trie, tokens, None if words is None else FilterTensors(words, rank)


def trie_view(native: Any, trie: TrieTensors) -> Any:
    """The trie's addresses. Its tensors must outlive the use."""
    return native.Trie(
        trie.codes.data_ptr(),
        trie.bits.data_ptr(),
        trie.rank.data_ptr(),
        trie.starts.data_ptr(),
        trie.level.data_ptr(),
        *trie.bits.shape,
        trie.codes.element_size(),
    )


def _views(
    native: Any, trie: TrieTensors, tokens: TokenTensors, filters: FilterTensors | None
) -> tuple[Any, Any, Any]:
    column, denied, terminator, _ = tokens
    words = (0, 0, 0)
    if filters is not None:
        words = (filters.words.data_ptr(), filters.rank.data_ptr(), filters.words.shape[1])
    return (
        trie_view(native, trie),
        native.Filter(*words),
        native.Tokens(
            column.data_ptr(),
            column.stride(0),
            column.shape[1],
            terminator,
            denied.data_ptr(),
            denied.numel(),
        ),
    )


def _kernels(op: str, tensor: torch.Tensor) -> Any:
    """The native module where it can take `tensor`, else None."""
    native = _native.load()
    if native is not None and tensor.is_cuda:
        version = _version(tensor.device)
        if not _native.has_cuda(version):
            _native.warn_no_cuda_kernels(op, version)
            return None
    return native


@functools.cache
def _version(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability."""
    return torch.cuda.get_device_capability(device)


def _adjacent(logits: torch.Tensor) -> torch.Tensor:
    """Rows may be any distance apart; within a row logits must be adjacent."""
    return logits if logits.stride(1) == 1 or logits.shape[1] <= 1 else logits.contiguous()


def _launch(kernel: Any, tensor: torch.Tensor, *args: Any) -> None:
    """Run a CUDA kernel on the device and current stream of `tensor`."""
    with torch.cuda.device(tensor.device):
        kernel(*args, torch.cuda.current_stream(tensor.device).cuda_stream)


def _walk(*flat: Any) -> torch.Tensor:
    trie, path = TrieTensors(*flat[:-1]), flat[-1]
    native = _kernels("trie_walk", path)
    if native is None:
        return reference.trie_walk(trie, path)
    path = path.contiguous()
    nodes = torch.empty(path.shape[0], dtype=torch.int64, device=path.device)
    args = (trie_view(native, trie), path.data_ptr(), *path.shape, nodes.data_ptr())
    if path.is_cuda:
        _launch(native.trie_walk_cuda, path, *args)
    else:
        native.trie_walk(*args)
    return nodes


def _mask_into(out: torch.Tensor, logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> None:
    """Mask `logits` into `out`, both with adjacent columns; they may be one tensor."""
    trie, tokens, filters = _bundles(flat)
    native = _kernels("trie_mask", logits)
    if native is None:
        out.copy_(reference.trie_mask(logits, nodes, trie, tokens, filters))
        return
    nodes = nodes.contiguous()
    rows, vocab = logits.shape
    args = native.MaskArgs(
        *_views(native, trie, tokens, filters),
        max(1, rows // (1 if filters is None else filters.words.shape[0])),
        logits.data_ptr(),
        out.data_ptr(),
        nodes.data_ptr(),
        rows,
        vocab,
        logits.stride(0),
        out.stride(0),
        logits.element_size(),
        _MINUS_INF_BITS[logits.dtype],
    )
    if logits.is_cuda:
        _launch(native.trie_mask_cuda, logits, args)
    else:
        native.trie_mask(args)


def _mask(logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> torch.Tensor:
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _mask_into(out, _adjacent(logits), nodes, *flat)
    return out


def _mask_inplace(logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> None:
    rows = _adjacent(logits)
    _mask_into(rows, rows, nodes, *flat)
    if rows is not logits:
        logits.copy_(rows)


def _step(
    logits: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    (trie, tokens, filters), (num_beams, normalize, temperature) = _bundles(rest[:-3]), rest[-3:]
    native = _kernels("trie_step", logits)
    batch, beams = scores.shape
    if native is None or (logits.is_cuda and max(beams, num_beams) > _CUDA_BEAMS):
        return reference.trie_step(
            logits, scores, nodes, trie, tokens, num_beams, normalize, temperature, filters
        )
    logits, scores, nodes = _adjacent(logits), scores.contiguous(), nodes.contiguous()
    out_scores = scores.new_empty(batch, num_beams)
    out = [nodes.new_empty(batch, num_beams) for _ in range(3)]
    args = native.StepArgs(
        *_views(native, trie, tokens, filters),
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
    if logits.is_cuda:
        size = native.trie_step_workspace(args)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
        _launch(native.trie_step_cuda, logits, args, workspace.data_ptr())
    else:
        native.trie_step(args)
    return (out_scores, *out)


def step(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    """`torch.ops.crs_fast.trie_step`, without its 10 microseconds where nobody traces the call."""
    if torch.compiler.is_compiling() or type(logits) is not torch.Tensor:
        return torch.ops.crs_fast.trie_step(logits, *rest)
    return _step(logits, *rest)


def _walk_fake(*flat: Any) -> torch.Tensor:
    return flat[-1].new_empty(flat[-1].shape[0])


def _mask_fake(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _mask_inplace_fake(*args: Any) -> None:
    return None


def _step_fake(
    logits: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    shape = (scores.shape[0], rest[-3])
    return (scores.new_empty(shape), *(nodes.new_empty(shape) for _ in range(3)))


for _name, _run, _fake in (
    ("trie_walk", _walk, _walk_fake),
    ("trie_mask", _mask, _mask_fake),
    ("trie_mask_", _mask_inplace, _mask_inplace_fake),
    ("trie_step", _step, _step_fake),
):
    LIBRARY.impl(_name, _run, "CPU")
    LIBRARY.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"crs_fast::{_name}", _fake, lib=LIBRARY)
