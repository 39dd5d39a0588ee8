"""Tries on disk: one safetensors file with version and checksum in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import replacing
from crs_fast.ops import TrieTensors
from crs_fast.ops.trie.checks import TRIES
from crs_fast.ops.trie.contents import inconsistency

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


def load_trie(path: str | PathLike[str], mmap: bool = False) -> tuple[TrieTensors, ItemIds]:
    """See `SidTrie.load`."""
    from safetensors import SafetensorError

    try:
        metadata, tensors = _mapped(path) if mmap else _in_memory(path)
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
    TRIES.remember(trie)
    return trie, ids


def _mapped(path: str | PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors; on the CPU, tensors are views of the mapped file, read as they are
    used."""
    with _opened(path) as file:
        metadata = _checked_metadata(file.metadata(), path)
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _in_memory(path: str | PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The same, read once; what happens to the file afterwards changes nothing."""
    from safetensors.torch import load

    raw = _existing(path).read_bytes()
    try:
        tensors = load(raw)  # it checks the header, so that the next lines can trust it
    except KeyError as error:
        raise ValueError(f"SidTrie.load: {path} is damaged (dtype {error})") from None
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return _checked_metadata(header.get("__metadata__"), path), tensors


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """See `SidTrie.metadata`."""
    from safetensors import SafetensorError

    try:
        with _opened(path) as file:
            return _checked_metadata(file.metadata(), path)
    except SafetensorError as error:
        raise ValueError(f"SidTrie.load: {path} is damaged ({error})") from None


def _opened(path: str | PathLike[str]) -> Any:
    from safetensors import safe_open

    return safe_open(os.fspath(_existing(path)), framework="pt")


def _existing(path: str | PathLike[str]) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"SidTrie.load: no file {os.fspath(path)}")
    return Path(path)


def _checked_metadata(metadata: dict[str, str] | None, path: str | PathLike[str]) -> dict[str, str]:
    metadata = metadata or {}
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
