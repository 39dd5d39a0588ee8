"""Tries on disk: one safetensors file with version and checksum in its metadata."""

from __future__ import annotations

import hashlib
import os
from os import PathLike
from pathlib import Path

import torch

from crs_fast.ops import TrieTensors

from .item_ids import ItemIds
from .sid_trie import SidTrie

FORMAT = "crs_fast.sid_trie"
VERSION = "1"


def save_trie(trie: SidTrie, path: str | PathLike[str]) -> None:
    """See `SidTrie.save`."""
    from safetensors.torch import save_file

    tensors = {name: t.cpu().contiguous() for name, t in trie.tensors._asdict().items()}
    ids = trie.item_ids
    if ids.numbers is not None:
        tensors["item_ids"] = ids.numbers
    else:
        assert ids.text is not None
        assert ids.offsets is not None
        tensors |= {"item_ids.text": ids.text, "item_ids.offsets": ids.offsets}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "num_items": str(trie.num_items),
        "num_levels": str(trie.num_levels),
        "sha256": checksum(tensors),
    }
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, str(partial), metadata=metadata)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load_trie(path: str | PathLike[str]) -> SidTrie:
    """See `SidTrie.load`."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"SidTrie.load: no file {os.fspath(path)}")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise ValueError(
                    f"SidTrie.load: {path} must be {FORMAT} version {VERSION} "
                    f"(got {metadata.get('format')} version {metadata.get('version')})"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"SidTrie.load: {path} is damaged ({error})") from None
    if checksum(tensors) != metadata.get("sha256"):
        raise ValueError(f"SidTrie.load: {path} is damaged (its checksum does not match)")
    try:
        trie = SidTrie(
            TrieTensors(*(tensors.pop(name) for name in TrieTensors._fields)),
            ItemIds(
                tensors.get("item_ids"),
                tensors.get("item_ids.text"),
                tensors.get("item_ids.offsets"),
            ),
        )
    except KeyError as error:
        raise ValueError(f"SidTrie.load: {path} is inconsistent (no tensor {error})") from None
    problem = inconsistency(trie)
    if problem:
        raise ValueError(f"SidTrie.load: {path} is inconsistent ({problem})")
    return trie


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def inconsistency(trie: SidTrie) -> str | None:
    """Why the kernels could not trust this trie, or None. Guards every index they follow."""
    t, nodes, items = trie.tensors, trie.num_nodes, trie.num_items
    if any(x.dtype != torch.int32 or x.ndim != 1 for x in t):
        return "index tensors must be one-dimensional int32"
    if t.child_begin.numel() != nodes + 1 or t.code.numel() != nodes - 1:
        return "tensor sizes disagree"
    if t.item_end.numel() != nodes or t.level_begin.numel() < 3:
        return "tensor sizes disagree"
    if int(t.child_begin[0]) != 0 or int(t.child_begin[-1]) != nodes - 1:
        return "a child pointer is out of range"
    if bool((t.child_begin[1:] < t.child_begin[:-1]).any()):
        return "child pointers must not decrease"
    node = torch.arange(nodes)
    has_child = t.child_begin[1:] > t.child_begin[:-1]
    # Edge e leads to node e + 1, which must lie below its parent: no cycles.
    if bool((t.child_begin[:-1][has_child] < node[has_child]).any()):
        return "a child pointer leads upwards"
    if bool((t.item_begin < 0).any() or (t.item_end > items).any()):
        return "an item range is out of range"
    if bool((t.item_end < t.item_begin).any()):
        return "an item range is reversed"
    if int(t.level_begin[0]) != 0 or int(t.level_begin[-1]) != nodes:
        return "levels must cover the nodes"
    if bool((t.level_begin[1:] < t.level_begin[:-1]).any()):
        return "levels must not decrease"
    if bool((t.code < -1).any()):
        return "a code is below -1"
    ids = trie.item_ids
    if ids.numbers is None and not (
        ids.text is not None
        and ids.offsets is not None
        and ids.offsets.numel() >= 1
        and int(ids.offsets[0]) == 0
        and int(ids.offsets[-1]) == ids.text.numel()
        and not bool((ids.offsets[1:] < ids.offsets[:-1]).any())
    ):
        return "item id offsets are out of range"
    return None
