"""Index files in the exact shapes of other projects, over one small catalogue."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import torch

# Items 2 and 5 share a SID; code 1 of level 0 and code 2 of level 1 are carried by no item.
SIDS = [[0, 3, 1], [2, 0, 0], [2, 1, 3], [3, 3, 3], [0, 0, 2], [2, 1, 3]]
SIZES = [4, 4, 4]
TITLES = ["Heat", "Up", "It's a\tWonderful  Life", "Alien", "Big", "Her"]


def tokenizer_of(tokens, eos="</s>"):
    """A tokenizer of words that has these tokens too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", eos, "a", "film"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token=eos)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def names(prefix: str) -> list[list[str]]:
    return [
        [f"<{prefix}{string.ascii_lowercase[l]}_{c}>" for c in range(size)]
        for l, size in enumerate(SIZES)
    ]


def tokens_of(sid, prefix=""):
    return [names(prefix)[l][c] for l, c in enumerate(sid)]


def index_json(path: Path) -> Path:
    """What LC-Rec's and MiniOneRec's generate_indices.py write."""
    index = {str(item): tokens_of(sid) for item, sid in enumerate(SIDS)}
    path.write_text(json.dumps(index))
    return path


def info_txt(path: Path) -> Path:
    """What MiniOneRec's convert_dataset.py writes; a title may hold tabs."""
    lines = [
        f"{''.join(tokens_of(sid))}\t{title}\t{item}\n"
        for item, (sid, title) in enumerate(zip(SIDS, TITLES, strict=True))
    ]
    path.write_text("".join(lines))
    return path


def sid2pid_json(path: Path, field="pid", dotted=False) -> Path:
    """What RecIF-Bench's load_pid_mapping reads."""
    mapping: dict[str, list[dict[str, int]]] = {}
    for item, (a, b, c) in enumerate(SIDS):
        key = f"{a}.{b}.{c}" if dotted else str((a * 8192 + b) * 8192 + c)
        entry = {field: item, "count": 9 - item, "count_after_downsample": 1}
        mapping.setdefault(key, []).append(entry)
    path.write_text(json.dumps(mapping))
    return path


def flashrec_json(path: Path, levels=4) -> Path:
    """What `flashrec --catalog` writes: without a space, keys ascending."""
    sids = sorted({tuple(sid) for sid in SIDS})
    end = ",1" if levels == 4 else ""
    path.write_text("{" + ",".join(f'"{a},{b},{c}{end}":1' for a, b, c in sids) + "}")
    return path


def jsonl(path: Path, token_ids) -> Path:
    """What NVIDIA's SemanticItemCatalog.from_jsonl reads."""
    rows = [
        {"item_id": f"film {item}", "token_ids": ids, "metadata": {"title": TITLES[item]}}
        for item, ids in enumerate(token_ids)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def npy(path: Path, grid=False, dtype=np.int64) -> Path:
    array = np.array(SIDS, dtype=dtype)
    np.save(path, array.T if grid else array)
    return path


def generation(
    root: Path, name: str, items, *, whole=None, since=None, kind="parquet", parts=2
) -> Path:
    """What TorchEasyRec's resolve_sid_collisions publishes.

    Args:
        items: the items that this run added.
        whole: those of the whole catalogue; None leaves that artifact out.
    """
    folder = root / name
    artifacts = {}
    tables = {"item_to_sid": whole} | ({"delta_item_to_sid": items} if since else {})
    for artifact, held in tables.items():
        if held is None:
            continue
        write_parts(folder / artifact, held, kind, parts)
        location = f"sid_collision/{name}/{artifact}"
        artifacts[artifact] = {"save_type": kind, "rows": len(held), "location": location}
    manifest = {
        "bundle_uuid": f"uuid of {name}",
        "codebook": SIZES,
        "capacity": 5,
        "max_observed_items_per_sid": 2,
        "artifacts": artifacts,
        "item_id_type": "int64",
    } | ({"since_bundle_uuid": f"uuid of {since}"} if since else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder


def write_parts(folder: Path, items, kind: str, parts: int) -> None:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    folder.mkdir(parents=True)
    offsets = torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    for part in range(parts):
        held = list(items)[part::parts]
        codes = [SIDS[item] for item in held]
        shifted = [(torch.tensor(sid) + offsets).tolist() for sid in codes]
        if kind == "csv":
            texts = [[",".join(map(str, sid)) for sid in rows] for rows in (codes, shifted)]
            codes, shifted = (pyarrow.array(rows, pyarrow.string()) for rows in texts)
        else:
            lists = pyarrow.list_(pyarrow.int64())
            codes, shifted = (pyarrow.array(rows, lists) for rows in (codes, shifted))
        table = pyarrow.table(
            {
                "item_id": pyarrow.array(held, pyarrow.int64()),
                "origin_codebook": codes,
                "codebook": codes,
                "offset_codebook": shifted,
                "index": [1] * len(held),
            }
        )
        if kind == "csv":
            pyarrow.csv.write_csv(table, folder / f"part-{part}.csv")
        else:
            pyarrow.parquet.write_table(table, folder / f"part-{part}.parquet")
