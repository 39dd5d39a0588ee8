"""Tries on disk: one safetensors file with version and checksum in its metadata."""

from __future__ import annotations

import hashlib
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crs_fast._files import replacing
from crs_fast.ops import TrieTensors
from crs_fast.ops.trie.nodes import popcount

from .item_ids import ItemIds

FORMAT = "crs_fast.sid_trie"
VERSION = "2"


def save_trie(path: str | PathLike[str], trie: TrieTensors, ids: ItemIds) -> None:
    """See `SidTrie.save`."""
    from safetensors.torch import save_file

    used = trie.used()
    tensors = {name: t.cpu().contiguous() for name, t in used._asdict().items()}
    if ids.numbers is not None:
        tensors["item_ids"] = ids.numbers
    else:
        assert ids.text is not None
        assert ids.offsets is not None
        tensors |= {"item_ids.text": ids.text, "item_ids.offsets": ids.offsets}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "num_items": str(len(ids)),
        "num_levels": str(trie.num_levels),
        "sha256": checksum(tensors),
    }
    with replacing(os.fspath(path)) as partial:
        save_file(tensors, str(partial), metadata=metadata)


def load_trie(path: str | PathLike[str]) -> tuple[TrieTensors, ItemIds]:
    """See `SidTrie.load`."""
    from safetensors import SafetensorError

    try:
        with _opened(path) as file:
            metadata = _checked_metadata(file, path)
            # On the CPU these are views of the mapped file, read as they are used.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"SidTrie.load: {path} is damaged ({error})") from None
    if checksum(tensors) != metadata.get("sha256"):
        raise ValueError(f"SidTrie.load: {path} is damaged (its checksum does not match)")
    try:
        trie = TrieTensors(*(tensors.pop(name) for name in TrieTensors._fields))
    except KeyError as error:
        raise ValueError(f"SidTrie.load: {path} is inconsistent (no tensor {error})") from None
    names = ("item_ids", "item_ids.text", "item_ids.offsets")
    ids = ItemIds(*(tensors.get(name) for name in names))
    problem = _bad_ids(ids) or inconsistency(trie, len(ids))
    sizes = (metadata.get("num_items"), metadata.get("num_levels"))
    if not problem and sizes != (str(len(ids)), str(trie.num_levels)):
        problem = f"its metadata says {sizes[0]} items and {sizes[1]} levels"
    if problem:
        raise ValueError(f"SidTrie.load: {path} is inconsistent ({problem})")
    return trie, ids


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """See `SidTrie.metadata`."""
    from safetensors import SafetensorError

    try:
        with _opened(path) as file:
            return _checked_metadata(file, path)
    except SafetensorError as error:
        raise ValueError(f"SidTrie.load: {path} is damaged ({error})") from None


def _opened(path: str | PathLike[str]) -> Any:
    from safetensors import safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"SidTrie.load: no file {os.fspath(path)}")
    return safe_open(os.fspath(path), framework="pt")


def _checked_metadata(file: Any, path: str | PathLike[str]) -> dict[str, str]:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(
            f"SidTrie.load: {path} must be {FORMAT} version {VERSION} "
            f"(got {metadata.get('format')} version {metadata.get('version')})"
        )
    return metadata


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


_DTYPES = {
    "codes": (torch.uint8, torch.int16, torch.int32),
    "bits": (torch.int64,),
    "rank": (torch.int32,),
    "starts": (torch.int32,),
    "level": (torch.int64,),
}


def inconsistency(t: TrieTensors, items: int) -> str | None:
    """Why the kernels could not trust a trie of so many items, or None. Guards every index that
    they follow."""
    for name, tensor in t._asdict().items():
        if tensor.dtype not in _DTYPES[name]:
            return f"{name} must not be {tensor.dtype}"
    levels, words = t.bits.shape if t.bits.ndim == 2 else (0, 0)
    used = items // 64 + 1
    if not 1 <= levels <= 127 or words < used or t.rank.shape != t.bits.shape:
        return "bits and rank must be [levels, words], one bit an item"
    if t.level.shape != (levels + 1, 2) or t.codes.ndim != 1 or t.starts.ndim != 1:
        return "tensor sizes disagree"
    if t.level[-1].tolist() != [t.codes.numel(), items]:
        return "the totals must be the number of codes and of items"
    return _bad_bitmaps(t, items, used) or _bad_starts(t) or _bad_codes(t, items)


def _bad_bitmaps(t: TrieTensors, items: int, used: int) -> str | None:
    beyond = torch.full((used,), 0, dtype=torch.int64, device="cpu")
    beyond[-1] = -1 << items % 64
    if bool((t.bits[:, :used] & beyond).any()) or bool(t.bits[:, used:].any()):
        return "a node begins past the last item"
    count = popcount(t.bits[:, :used])
    if not torch.equal(t.rank[:, :used].long(), count.cumsum(1) - count):
        return "rank must count the bits before each word"
    nodes = count.sum(1)
    if not torch.equal(t.level[:, 0], torch.cat([nodes.new_zeros(1), nodes.cumsum(0)])):
        return "each depth must have one code a node"
    if items and not bool((t.bits[0, 0] & 1).bool()):
        return "the first item must begin a node"
    if t.codes.numel() and int(t.codes.min()) < 0:
        return "a code is below 0"
    return None


def _bad_starts(t: TrieTensors) -> str | None:
    at = 0
    tables = t.level[:-1, 1].tolist()
    for depth, (row, first) in enumerate(zip(t.bits, tables, strict=True)):
        if first < 0:
            continue
        begins = _unpacked(row).nonzero().squeeze(1)
        table = t.starts[at : at + begins.numel()]
        if first != at or not torch.equal(table.long(), begins):
            return f"starts must list where the nodes of depth {depth + 1} begin"
        at += begins.numel()
    return None if at == t.starts.numel() else "starts must belong to a depth"


def _bad_codes(t: TrieTensors, items: int) -> str | None:
    """Searches and bounds rely on siblings in order."""
    parents = torch.zeros(
        items, dtype=torch.int64, device="cpu"
    )  # node of the depth above that holds each item
    for depth, (row, first) in enumerate(zip(t.bits, t.level[:-1, 0].tolist(), strict=True)):
        begins = _unpacked(row)[:items]
        codes = t.codes[first : first + int(begins.sum())].long()
        parent = parents[begins]
        if bool(((parent[1:] == parent[:-1]) & (codes[1:] <= codes[:-1])).any()):
            return f"codes of depth {depth + 1} must ascend below a node"
        # An item whose SID has ended stands before its prefix's children, not below the last node.
        parents = begins.cumsum(0)
    return None


def _unpacked(row: torch.Tensor) -> torch.Tensor:
    """bool [64 W] of words int64 [W]."""
    return torch.from_numpy(np.unpackbits(row.numpy().view("u1"), bitorder="little")).bool()


def _bad_ids(ids: ItemIds) -> str | None:
    if ids.numbers is not None:
        if ids.numbers.dtype not in (torch.int32, torch.int64) or ids.numbers.ndim != 1:
            return "item ids must be int32 or int64"
        ordered = ids.numbers.sort().values
        return "item ids must be distinct" if bool((ordered[1:] == ordered[:-1]).any()) else None
    if ids.text is None or ids.offsets is None:
        return "no item ids"
    if (
        ids.text.dtype != torch.uint8
        or ids.offsets.dtype != torch.int64
        or ids.offsets.numel() < 1
        or int(ids.offsets[0]) != 0
        or int(ids.offsets[-1]) != ids.text.numel()
        or bool((ids.offsets[1:] < ids.offsets[:-1]).any())
    ):
        return "item id offsets are out of range"
    return None
