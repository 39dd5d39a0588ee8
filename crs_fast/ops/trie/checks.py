"""The checks of the trie ops' arguments, for the public functions and for `torch.ops.crs_fast`.

Shapes, dtypes and devices are looked at in every call; contents that a kernel follows as indices
once for each group of tensors. Nodes change with every step: the kernels check them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..checked import CheckedContents, Guard
from ..dtypes import NATIVE_FLOATS, name_of
from .contents import TRIE_DTYPES, filters_problem, tokens_problem, trie_problem
from .tensors import NORMALIZE, FilterTensors, TokenTensors, TrieTensors

TRIES, TOKENS, FILTERS = CheckedContents(), CheckedContents(), CheckedContents()
_DEVICES = ("cpu", "cuda", "meta")  # meta tensors have shapes only
_MOST_BEAMS = 1 << 31


def check_walk(op: str, trie: TrieTensors, codes: torch.Tensor) -> Guard | None:
    guard = check_trie(op, trie)
    check_tensor(op, "codes", codes, trie.codes, (torch.int64,), 2)
    return guard


def check_mask(
    op: str,
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
    filter_of_row: torch.Tensor | None = None,
) -> Guard | None:
    guard = check_trie(op, trie)
    check_tensor(op, "logits", logits, trie.codes, NATIVE_FLOATS, 2)
    check_tensor(op, "nodes", nodes, trie.codes, (torch.int64,), 1)
    if nodes.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{op}: nodes must have one entry a row of logits, {logits.shape[0]} "
            f"(got {nodes.shape[0]})"
        )
    check_tokens(op, logits.shape[1], trie, tokens)
    check_filters(op, filters, trie)
    if filter_of_row is not None:
        check_filter_of_row(op, filter_of_row, nodes, trie, filters)
    elif filters is not None and (
        filters.words.shape[0] == 0 or logits.shape[0] % filters.words.shape[0]
    ):
        raise ValueError(
            f"{op}: filters must divide the {logits.shape[0]} rows evenly "
            f"(got {filters.words.shape[0]})"
        )
    return guard


def check_mask_inplace(
    op: str,
    logits: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
    filter_of_row: torch.Tensor | None = None,
) -> Guard | None:
    guard = check_mask(op, logits, nodes, trie, tokens, filters, filter_of_row)
    if not torch.compiler.is_compiling() and logits.is_neg():
        raise ValueError(f"{op}: logits must be memory to write to (got a negative view)")
    (rows, vocab), (down, across) = logits.shape, logits.stride()
    shared = (vocab > 1 and across == 0) or (rows > 1 and down == 0)
    if (shared and logits.numel()) or (rows > 1 and across == 1 and down < vocab):
        raise ValueError(f"{op}: rows of logits must not overlap (got strides {logits.stride()})")
    return guard


def check_filter_of_row(
    op: str,
    filter_of_row: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    filters: FilterTensors | None,
) -> None:
    if filters is None or filters.words.shape[0] == 0:
        raise ValueError(f"{op}: filters must be given beside filter_of_row (got none)")
    check_tensor(op, "filter_of_row", filter_of_row, trie.codes, (torch.int64,), 1)
    if filter_of_row.shape != nodes.shape:
        raise ValueError(
            f"{op}: filter_of_row must have one entry per row of logits, {nodes.shape[0]} "
            f"(got {filter_of_row.shape[0]})"
        )
    # On a GPU nobody waits for the values: those outside are taken as the nearest inside.
    if filter_of_row.device.type == "cpu" and not torch.compiler.is_compiling():
        check_range(op, "filter_of_row", filter_of_row, filters.words.shape[0], lowest=-1)


def check_step(
    op: str,
    logits: torch.Tensor,
    scores: torch.Tensor,
    nodes: torch.Tensor,
    trie: TrieTensors,
    tokens: TokenTensors,
    filters: FilterTensors | None,
    num_beams: int,
    normalize: str,
    temperature: float,
    normalizers: torch.Tensor | None = None,
) -> Guard | None:
    guard = check_trie(op, trie)
    check_tensor(op, "logits", logits, trie.codes, NATIVE_FLOATS, 2)
    check_tensor(op, "scores", scores, trie.codes, (torch.float32,), 2)
    check_tensor(op, "nodes", nodes, trie.codes, (torch.int64,), 2)
    if nodes.shape != scores.shape or logits.shape[0] != scores.numel():
        raise ValueError(
            f"{op}: logits [B * M, V], scores [B, M] and nodes [B, M] must agree "
            f"(got {tuple(logits.shape)}, {tuple(scores.shape)}, {tuple(nodes.shape)})"
        )
    check_tokens(op, logits.shape[1], trie, tokens)
    if not hasattr(num_beams, "__index__"):
        raise ValueError(f"{op}: num_beams must be an integer (got {num_beams!r})")
    if not 1 <= num_beams < _MOST_BEAMS:
        raise ValueError(f"{op}: num_beams must be at least 1 and below 2^31 (got {num_beams})")
    check_temperature(op, temperature)
    if normalize not in NORMALIZE:
        raise ValueError(f"{op}: normalize must be one of {NORMALIZE} (got {normalize!r})")
    if normalizers is not None:
        check_tensor(op, "normalizers", normalizers, trie.codes, (torch.float32,), 1)
        if normalize != "vocab" or normalizers.shape != logits.shape[:1]:
            raise ValueError(
                f"{op}: normalizers must be [B * M] = [{logits.shape[0]}] with normalize='vocab' "
                f"(got {list(normalizers.shape)} with {normalize!r})"
            )
    check_filters(op, filters, trie)
    if filters is not None and filters.words.shape[0] != scores.shape[0]:
        raise ValueError(
            f"{op}: filters must hold one bitmap per request, {scores.shape[0]} "
            f"(got {filters.words.shape[0]})"
        )
    return guard


def check_temperature(op: str, temperature: Any) -> None:
    if not isinstance(temperature, (float, int)) or not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0 (got {temperature!r})")
    if temperature == math.inf:
        raise ValueError(f"{op}: temperature must be finite (got {temperature!r})")


def check_trie(op: str, trie: TrieTensors) -> Guard | None:
    """What to hold while a kernel reads the trie, where its owner may change it."""
    if not isinstance(trie, TrieTensors):
        raise ValueError(
            f"{op}: trie must be TrieTensors, such as SidTrie.tensors (got {type(trie).__name__})"
        )
    if torch.compiler.is_compiling():  # what is traced can't be looked up
        return None
    known = TRIES.find(trie)
    if known is not None:
        return known.guard
    for name, tensor in trie._asdict().items():
        beside = tensor if name == "codes" else trie.codes
        ndim = 1 if name in ("codes", "starts") else 2
        check_tensor(op, f"the trie's {name}", tensor, beside, TRIE_DTYPES[name], ndim)
        if not tensor.is_contiguous():
            raise ValueError(
                f"{op}: the trie's {name} must be contiguous (got strides {tensor.stride()})"
            )
    if trie.codes.device.type not in _DEVICES:
        raise ValueError(f"{op}: trie must be on the CPU or on CUDA (got {trie.codes.device})")
    levels = trie.bits.shape[0]
    if (
        not 1 <= levels <= 127
        or trie.rank.shape != trie.bits.shape
        or trie.level.shape != (levels + 1, 2)
    ):
        raise ValueError(
            f"{op}: the trie's bits [L, W], rank [L, W] and level [L + 1, 2] must agree "
            f"(got {tuple(trie.bits.shape)}, {tuple(trie.rank.shape)}, {tuple(trie.level.shape)})"
        )

    def check() -> None:
        problem = trie_problem(trie)
        if problem:
            raise ValueError(
                f"{op}: the trie's tensors must agree, as trie_build makes them (got tensors of "
                f"which one is wrong: {problem})"
            )

    TRIES.require(trie, (), check)
    return None


def check_tokens(op: str, vocab: int, trie: TrieTensors, tokens: TokenTensors) -> None:
    """
    Args:
        vocab: columns of the logits.
    """
    if not isinstance(tokens, TokenTensors):
        raise ValueError(
            f"{op}: tokens must be TokenTensors, such as those of token_tensors or of "
            f"SidVocab.tensors (got {type(tokens).__name__})"
        )
    column, denied, terminator, num_columns = tokens
    if (
        not torch.compiler.is_compiling()
        and TOKENS.find((column, denied), (num_columns,)) is not None
        and num_columns <= vocab
        and -1 <= terminator < num_columns
        and column.shape[0] >= trie.bits.shape[0]
        and column.device == trie.codes.device
    ):
        return  # every step asks
    if vocab < num_columns:
        raise ValueError(
            f"{op}: logits must have at least {num_columns} columns, the highest token of "
            f"the vocabulary plus one (got {vocab})"
        )
    if not -1 <= terminator < num_columns:
        raise ValueError(
            f"{op}: the vocabulary's terminator must lie in -1 .. {num_columns - 1}, below "
            f"num_columns (got {terminator})"
        )
    aligned = (
        column.dtype == torch.int64
        and column.ndim == 2
        and (column.shape[1] <= 1 or column.stride(1) == 1)
    )
    if not (aligned and column.device == trie.codes.device):
        raise ValueError(
            f"{op}: the vocabulary's column must be int64 [levels, C] on the trie's device "
            f"{trie.codes.device}, rows adjacent "
            f"(got {column.dtype} {tuple(column.shape)} on {column.device})"
        )
    if denied.ndim != 1 or not is_plain(denied, trie.codes, torch.int64):
        raise ValueError(
            f"{op}: the vocabulary's denied must be contiguous int64 [n] on the trie's device "
            f"{trie.codes.device} (got {denied.dtype} {tuple(denied.shape)} on {denied.device})"
        )
    levels = trie.bits.shape[0]  # torch 2.8 can't trace properties of a named tuple
    if column.shape[0] < levels or column.shape[1] == 0:
        raise ValueError(
            f"{op}: the vocabulary must have the trie's {levels} levels (got {tuple(column.shape)})"
        )
    if torch.compiler.is_compiling():
        return

    def check() -> None:
        problem = tokens_problem(tokens)
        if problem:
            raise ValueError(f"{op}: the vocabulary's {problem}")

    TOKENS.require((column, denied), (num_columns,), check)


def remember_tokens(tokens: TokenTensors) -> None:
    """Their contents are known to lie below `num_columns`."""
    TOKENS.remember((tokens.column, tokens.denied), (tokens.num_columns,))


def check_filters(op: str, filters: FilterTensors | None, trie: TrieTensors) -> None:
    if filters is None:
        return
    if not isinstance(filters, FilterTensors):
        raise ValueError(
            f"{op}: filters must be FilterTensors, such as ItemFilter.tensors "
            f"(got {type(filters).__name__})"
        )
    words, rank = filters
    if (
        not torch.compiler.is_compiling()
        and FILTERS.find(filters) is not None
        and words.shape[1] == trie.bits.shape[1]
        and words.device == trie.codes.device
    ):
        return  # every step asks
    if words.ndim != 2 or words.shape[1] != trie.bits.shape[1] or rank.shape != words.shape:
        raise ValueError(
            f"{op}: filters must be made for this trie, with {trie.bits.shape[1]} words per bitmap "
            f"(got {tuple(words.shape)} and {tuple(rank.shape)})"
        )
    if not (is_plain(words, trie.codes, torch.int64) and is_plain(rank, trie.codes, torch.int32)):
        raise ValueError(
            f"{op}: filters must be contiguous int64 words and int32 ranks on the trie's device "
            f"{trie.codes.device} (got {words.dtype} and {rank.dtype} on {words.device})"
        )
    if torch.compiler.is_compiling():
        return

    def check() -> None:
        problem = filters_problem(filters)
        if problem:
            raise ValueError(f"{op}: the filters' {problem} (got others)")

    FILTERS.require(filters, (), check)


def check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    beside: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    ndim: int | None,
) -> None:
    if (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in dtypes
        and (tensor.ndim == ndim or ndim is None)
        and tensor.layout is torch.strided
        and tensor.device == beside.device
    ):
        return  # every step asks
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{op}: {name} must be a torch tensor (got {type(tensor).__name__})")
    if tensor.dtype not in dtypes:
        expected = ", ".join(map(name_of, dtypes))
        raise ValueError(f"{op}: {name} must be {expected} (got {name_of(tensor.dtype)})")
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions (got {tuple(tensor.shape)})")
    if tensor.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor (got {tensor.layout})")
    if tensor.device != beside.device:
        raise ValueError(
            f"{op}: {name} must be on the trie's device {beside.device} (got {tensor.device})"
        )


def check_range(op: str, name: str, positions: torch.Tensor, size: int, lowest: int = 0) -> None:
    if positions.numel() == 0:
        return
    least, most = torch.stack(positions.aminmax()).tolist()
    if not lowest <= least <= most < size:
        raise ValueError(f"{op}: {name} must lie in {lowest} .. {size - 1} (got {least} .. {most})")


def is_plain(tensor: torch.Tensor, beside: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a kernel may take the tensor's address."""
    return tensor.dtype == dtype and tensor.device == beside.device and tensor.is_contiguous()
