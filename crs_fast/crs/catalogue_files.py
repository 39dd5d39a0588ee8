"""A catalogue on disk beside its model directory: one folder that is there whole or not at all.

trie.safetensors   the SIDs (`SidTrie.save`)
items.jsonl        the item table
catalogue.json     the vocabulary, checksums, and the catalogue of the model that it belongs to
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from crs_fast._files import replacing
from crs_fast.crs.checkpoint import Bundle, check_items_of
from crs_fast.crs.data.jsonl import read_items, write_items
from crs_fast.crs.manifest import check_files, checksums, read_manifest
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.trie import SidTrie, vocabulary_from_dict

TRIE, ITEMS, MANIFEST = "trie.safetensors", "items.jsonl", "catalogue.json"
_KINDS: dict[str, type | tuple[type, ...]] = {"base": str, "vocab": dict, "sha256": dict}


def catalogue_fingerprint(bundle: Bundle) -> str:
    """SHA-256 (hex) over the SIDs of all items, their tokens and the quantizer."""
    digest = hashlib.sha256(json.dumps(bundle.vocab.to_dict(), sort_keys=True).encode())
    digest.update(repr(bundle.quantizer).encode())
    digest.update(bundle.trie.sids().numpy().tobytes())
    digest.update(json.dumps(bundle.trie.item_ids.tolist()).encode())
    return digest.hexdigest()


def write_catalogue(folder: Path, bundle: Bundle, base: str) -> None:
    """Write a bundle's catalogue. `base` is the fingerprint of its model's first catalogue."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        bundle.trie.save(partial / TRIE)
        write_items(partial / ITEMS, bundle.items)
        manifest = {
            "base": base,
            "num_items": len(bundle.items),
            "vocab": bundle.vocab.to_dict(),
            **checksums(partial, (TRIE, ITEMS)),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest) + "\n")


def read_catalogue(folder: Path, bundle: Bundle, base: str) -> Bundle:
    """`bundle` with the catalogue that `write_catalogue` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file was changed or cut off, or the catalogue is of another model.
    """
    for name in (MANIFEST, TRIE, ITEMS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"read_catalogue: {folder} must hold {name} (got no such file)")
    manifest = read_manifest("read_catalogue", folder / MANIFEST, _KINDS)
    if manifest["base"] != base:
        raise ValueError(
            f"read_catalogue: {folder} must hold a catalogue of this model, {base[:12]}… "
            f"(got {manifest['base'][:12]}…)"
        )
    check_files("read_catalogue", folder, manifest)
    trie, items = SidTrie.load(folder / TRIE), read_items(folder / ITEMS)
    check_items_of("read_catalogue", trie, items)
    vocab, old = vocabulary_from_dict(manifest["vocab"]), bundle.builder
    builder = SequenceBuilder(
        bundle.tokenizer,
        vocab,
        bundle.control,
        trie_sids(trie, vocab),
        old.max_length,
        old.layout,
    )
    return replace(bundle, trie=trie, vocab=vocab, items=items, builder=builder)
