"""Registration of the trie ops with torch, and which kernel takes a call.

`torch.ops.crs_fast.trie_*` take the bundles of `tensors.py` spread out flat. Where no kernel was
built, or none for this GPU, the reference runs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from crs_fast import _native

from ..checked import Guard
from ..library import register
from . import native as kernels
from . import reference
from .checks import TRIES, check_mask, check_mask_inplace, check_step, check_walk
from .nodes import are_held
from .tensors import LEAVE, NO_NODE, FilterTensors, TokenTensors, TrieTensors

# As many beams of a request as the CUDA step sorts in shared memory.
_CUDA_BEAMS = 8192

_TRIE = "Tensor codes, Tensor bits, Tensor rank, Tensor starts, Tensor level"
_TOKENS = "Tensor column, Tensor denied, int terminator, int num_columns"
_FILTERS = "Tensor? words, Tensor? filter_rank"
_NO_GUARD = nullcontext()
_NUM_TRIE, _NUM_TOKENS = len(TrieTensors._fields), len(TokenTensors._fields)
_NUM_BUNDLED = _NUM_TRIE + _NUM_TOKENS + 2
_FILTER_OF_ROW = "Tensor? filter_of_row=None"


def build(
    sids: torch.Tensor, num_sorted: int, progress: Callable[[float], Any] | None
) -> tuple[TrieTensors, torch.Tensor]:
    native = _native.load()
    if native is not None:
        return kernels.build(native, sids, num_sorted, progress)
    built = reference.trie_build(sids, num_sorted)
    if progress is not None:
        progress(1.0)
    return built


def insert(trie: TrieTensors, sids: torch.Tensor) -> tuple[TrieTensors, torch.Tensor, torch.Tensor]:
    native = _native.load()
    if native is None:
        return reference.trie_insert(trie, sids)
    return kernels.insert(native, trie, sids)


def remove(trie: TrieTensors, items: torch.Tensor) -> TrieTensors:
    native = _native.load()
    if native is None:
        return reference.trie_remove(trie, items)
    return kernels.remove(native, trie, items)


def rows(trie: TrieTensors, items: torch.Tensor | None, out: torch.Tensor) -> None:
    """The SIDs of `items` (None: of all) into `out`."""
    native = None if trie.bits.is_cuda else _native.load()
    if native is not None:
        with _guard(trie):
            kernels.rows(native, trie, items, out)
        return
    if items is None:
        items = torch.arange(out.shape[0], device=out.device)
    out.copy_(reference.trie_rows(trie, items))


def step(guard: Guard | None, logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    """`torch.ops.crs_fast.trie_step`, without its 10 microseconds where nobody traces the call."""
    if torch.compiler.is_compiling() or type(logits) is not torch.Tensor or logits.is_meta:
        return torch.ops.crs_fast.trie_step(logits, *rest)
    if guard is None:
        return _step(logits, *rest)
    with guard:
        return _step(logits, *rest)


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


def _bundles(flat: tuple[Any, ...]) -> tuple[TrieTensors, TokenTensors, FilterTensors | None]:
    """The bundles that stand, spread out, behind the first tensors of an op."""
    trie, rest = TrieTensors(*flat[:_NUM_TRIE]), flat[_NUM_TRIE:]
    tokens = TokenTensors(*rest[:_NUM_TOKENS])
    words, rank = rest[_NUM_TOKENS : _NUM_TOKENS + 2]
    return trie, tokens, None if words is None else FilterTensors(words, rank)


def _adjacent(logits: torch.Tensor) -> torch.Tensor:
    """Rows may be any distance apart; within a row logits must be adjacent."""
    return logits if logits.stride(1) == 1 or logits.shape[1] <= 1 else logits.contiguous()


def _guard(trie: TrieTensors) -> Guard:
    """What to hold while the CPU reads the trie: a `TrieSlot` may be loaded meanwhile."""
    known = TRIES.find(trie)
    return _NO_GUARD if known is None or known.guard is None else known.guard


def _check_nodes(op: str, trie: TrieTensors, nodes: torch.Tensor, lowest: int = NO_NODE) -> None:
    """What the native module checks itself, for the reference on the CPU.

    Raises:
        ValueError: a node that is neither one of `lowest` .. -1 nor one that the trie can hold.
    """
    if nodes.is_cuda:
        return
    is_known = (nodes >= lowest) & (nodes <= NO_NODE)
    wrong = nodes[~is_known & ~are_held(trie, nodes)]
    if wrong.numel():
        known = "-1" if lowest == NO_NODE else "-1, -2"
        raise ValueError(
            f"{op}: nodes must be {known} or nodes of this trie, which has "
            f"{int(trie.level[-1, 1])} items and {trie.num_levels} levels (got {int(wrong[0])})"
        )


def _walk(*flat: Any) -> torch.Tensor:
    trie, path = TrieTensors(*flat[:-1]), flat[-1]
    check_walk("trie_walk", trie, path)
    native = _kernels("trie_walk", path)
    if native is None:
        return reference.trie_walk(trie, path)
    with _guard(trie):
        return kernels.walk(native, trie, path)


def _mask_into(out: torch.Tensor, logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> None:
    """Mask `logits` into `out`, both with adjacent columns; they may be one tensor."""
    trie, tokens, filters = _bundles(flat[:_NUM_BUNDLED])
    # torch leaves out a last argument that has its default value.
    filter_of_row = flat[_NUM_BUNDLED] if len(flat) > _NUM_BUNDLED else None
    native = _kernels("trie_mask", logits)
    if native is None:
        _check_nodes("trie_mask", trie, nodes, LEAVE)
        out.copy_(reference.trie_mask(logits, nodes, trie, tokens, filters, filter_of_row))
        return
    with _guard(trie):
        kernels.mask(native, out, logits, nodes, trie, tokens, filters, filter_of_row)


def _mask(logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> torch.Tensor:
    check_mask("trie_mask", logits, nodes, *_bundles(flat[:_NUM_BUNDLED]), *flat[_NUM_BUNDLED:])
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _mask_into(out, _adjacent(logits), nodes, *flat)
    return out


def _mask_inplace(logits: torch.Tensor, nodes: torch.Tensor, *flat: Any) -> None:
    bundles, filter_of_row = _bundles(flat[:_NUM_BUNDLED]), flat[_NUM_BUNDLED:]
    check_mask_inplace("trie_mask_", logits, nodes, *bundles, *filter_of_row)
    rows = _adjacent(logits)
    _mask_into(rows, rows, nodes, *flat)
    if rows is not logits:
        logits.copy_(rows)


def _step(
    logits: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    trie, tokens, filters = _bundles(rest)
    num_beams, normalize, temperature, *known = rest[_NUM_BUNDLED:]
    # torch leaves out a last argument that has its default value.
    normalizers = known[0] if known else None
    native = _kernels("trie_step", logits)
    if native is not None and logits.is_cuda and not _fits(scores.shape[1], num_beams, tokens):
        _warn_too_many_beams()
        native = None
    if native is None:
        _check_nodes("trie_step", trie, nodes)
        return reference.trie_step(
            logits,
            scores,
            nodes,
            trie,
            tokens,
            num_beams,
            normalize,
            temperature,
            filters,
            normalizers,
        )
    return kernels.step(
        native, _adjacent(logits), scores, nodes, trie, tokens, filters, num_beams, normalize,
        temperature, normalizers,
    )  # fmt: skip


def _checked_step(
    logits: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    bundles = _bundles(rest)
    guard = check_step("trie_step", logits, scores, nodes, *bundles, *rest[_NUM_BUNDLED:])
    with guard or _NO_GUARD:
        return _step(logits, scores, nodes, *rest)


def _fits(beams: int, num_beams: int, tokens: TokenTensors) -> bool:
    """Whether the CUDA step can hold so many beams, and number their candidates in 32 bits."""
    most = max(beams, num_beams)
    return most <= _CUDA_BEAMS and most * (tokens.column.shape[1] + 1) < 1 << 32


@functools.cache
def _warn_too_many_beams() -> None:
    warnings.warn(
        f"trie_step: the CUDA kernel takes at most {_CUDA_BEAMS} beams; wider searches take the "
        "slower PyTorch reference",
        RuntimeWarning,
        stacklevel=2,
    )


def _walk_fake(*flat: Any) -> torch.Tensor:
    return flat[-1].new_empty(flat[-1].shape[0])


def _mask_fake(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _mask_inplace_fake(*args: Any) -> None:
    return None


def _step_fake(
    logits: torch.Tensor, scores: torch.Tensor, nodes: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    shape = (scores.shape[0], rest[_NUM_BUNDLED])
    return (scores.new_empty(shape), *(nodes.new_empty(shape) for _ in range(3)))


register(f"trie_walk({_TRIE}, Tensor path) -> Tensor", _walk, _walk_fake)
register(
    f"trie_mask(Tensor logits, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}, {_FILTER_OF_ROW}) "
    "-> Tensor",
    _mask,
    _mask_fake,
)
register(
    f"trie_mask_(Tensor(a!) logits, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}, "
    f"{_FILTER_OF_ROW}) -> ()",
    _mask_inplace,
    _mask_inplace_fake,
)
register(
    f"trie_step(Tensor logits, Tensor scores, Tensor nodes, {_TRIE}, {_TOKENS}, {_FILTERS}, "
    "int num_beams, str normalize, float temperature, Tensor? normalizers=None) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _checked_step,
    _step_fake,
)
