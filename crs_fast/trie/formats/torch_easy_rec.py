"""Bundles of TorchEasyRec's SID tools: one directory per generation, the manifest written last.

{generation}/manifest.json                      bundle_uuid, codebook, capacity, artifacts …
{generation}/item_to_sid/part-*.parquet         item_id, codebook, …: the whole catalogue
{generation}/delta_item_to_sid/part-*.parquet   what this generation added
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import replacing, write_text

from .rows import Rows, broken
from .texts import read_json

MANIFEST = "manifest.json"
_WHOLE, _DELTA, _GROUPS = "item_to_sid", "delta_item_to_sid", "sid_to_items"
_KEYS = ("bundle_uuid", "codebook", "artifacts")


def read(path: Path) -> Rows:
    """The catalogue of a generation. Where its directory holds only what it added, the generation
    before it, named by `since_bundle_uuid`, is looked for beside it.

    Args:
        path: a generation's directory, or a root with one generation.

    Raises:
        ValueError: several generations, one that was not finished, or rows that are missing.
    """
    if not (path / MANIFEST).is_file():
        found = sorted(manifest.parent.name for manifest in path.glob(f"*/{MANIFEST}"))
        if len(found) > 1:
            raise broken(path, f"holds several generations; name one of {found}")
        if not found:
            raise broken(
                path,
                f"has no {MANIFEST}, which TorchEasyRec writes last: no generation is finished",
            )
        path = path / found[0]
    sids, item_ids, sizes = _catalogue(path, set())
    if len(sids) == 0:
        raise broken(path, "must hold at least one item (got none)")
    if sids.shape[1] != len(sizes) or bool((sids >= torch.tensor(sizes, device="cpu")).any()):
        raise broken(
            path,
            f"must hold SIDs of the manifest's codebook {sizes} (got {sids.shape[1]} levels up to "
            f"{sids.amax(0).tolist()})",
        )
    return Rows(sids, item_ids)


def _catalogue(path: Path, seen: set[str]) -> tuple[torch.Tensor, Any, list[int]]:
    """SIDs and ids of every item of a generation, and its codebook's sizes."""
    manifest = _manifest(path)
    if (path / _WHOLE).is_dir():
        return *_table(path, _WHOLE, manifest), manifest["codebook"]
    since = manifest.get("since_bundle_uuid")
    if not (path / _DELTA).is_dir() or since is None:
        raise broken(path, f"must hold {_WHOLE}/ (got none); it may be kept elsewhere")
    seen.add(manifest["bundle_uuid"])
    before = _generation(path.parent, since)
    if before is None or since in seen:
        raise broken(
            path, f"adds to generation {since}, which must be in {path.parent} too (got none)"
        )
    sids, item_ids, sizes = _catalogue(before, seen)
    added, added_ids = _table(path, _DELTA, manifest)
    if sizes != manifest["codebook"] or type(item_ids) is not type(added_ids):
        raise broken(path, f"must have its predecessor's codebook {sizes} and kind of item ids")
    if isinstance(item_ids, torch.Tensor):
        return torch.cat([sids, added]), torch.cat([item_ids, added_ids]), sizes
    return torch.cat([sids, added]), item_ids + added_ids, sizes


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / MANIFEST)
    lacking = [key for key in _KEYS if key not in manifest]
    if lacking:
        raise broken(path / MANIFEST, f"must have {', '.join(_KEYS)} (got no {lacking[0]})")
    return manifest


def _generation(root: Path, bundle_uuid: str) -> Path | None:
    for manifest in sorted(root.glob(f"*/{MANIFEST}")):
        if _manifest(manifest.parent)["bundle_uuid"] == bundle_uuid:
            return manifest.parent
    return None


def _table(path: Path, artifact: str, manifest: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """SIDs int64 [n, L] and ids (a tensor of ints, or a list of strs) of one artifact's rows."""
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "load_index: TorchEasyRec bundles need pyarrow (pip install pyarrow)"
        ) from None
    entry = manifest["artifacts"].get(artifact, {})
    kind = entry.get("save_type", "parquet")
    parts = sorted((path / artifact).glob(f"part-*.{kind}"))
    if not parts:
        raise broken(path / artifact, f"must hold part-*.{kind} (got none)")
    sids, ids = [], []
    for part in parts:
        try:
            if kind == "csv":
                table = pa.csv.read_csv(part).select(["item_id", "codebook"])
            else:
                table = pa.parquet.read_table(part, columns=["item_id", "codebook"])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise broken(part, f"is damaged, or has no item_id and codebook ({error})") from None
        if table["item_id"].null_count or table["codebook"].null_count:
            raise broken(part, "must give every row an item_id and a codebook (got empty ones)")
        ids.append(table["item_id"])
        sids.append(_codes(part, table["codebook"]))
    if len({rows.shape[1] for rows in sids if len(rows)}) > 1:
        raise broken(path / artifact, "must hold SIDs of one length in all parts")
    rows = torch.cat([part for part in sids if len(part)] or sids[:1])
    if entry.get("rows", len(rows)) != len(rows):
        raise broken(
            path / artifact,
            f"must hold the {entry['rows']} rows of the manifest (got {len(rows)}); part of it "
            "is missing",
        )
    column = pa.chunked_array([chunk for of_part in ids for chunk in of_part.chunks], ids[0].type)
    if pa.types.is_integer(column.type):
        return rows, torch.from_numpy(column.to_numpy().astype("int64"))
    return rows, column.to_pylist()


def _codes(part: Path, column: Any) -> torch.Tensor:
    """SIDs int64 [n, L] of a column of lists, or in CSV files of texts with commas between."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if pa.types.is_string(column.type):
            column = pc.cast(pc.split_pattern(column, ","), pa.list_(pa.int64()))
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        flat = pc.list_flatten(column).to_numpy().astype("int64")
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise broken(part, f"must hold lists of codes in codebook ({error})") from None
    if len(lengths) > 1:
        raise broken(part, f"must hold SIDs of one length in codebook (got {sorted(lengths)})")
    return (
        torch.from_numpy(flat).view(len(column), -1)
        if len(column)
        else torch.empty(0, 0, dtype=torch.int64, device="cpu")
    )


def write(
    path: Path, item_ids: Sequence[int | str], sids: torch.Tensor, sizes: Sequence[int]
) -> None:
    """One generation with the whole catalogue, as `resolve_sid_collisions` publishes it."""
    import pyarrow
    import pyarrow.parquet

    if bool((sids < 0).any()):
        raise broken(path, "takes SIDs of one length (got shorter ones)", "SidIndex.save")
    if path.exists():
        raise broken(path, "must be a new directory (got one that exists)", "SidIndex.save")
    offsets = torch.tensor([0, *sizes[:-1]], device="cpu").cumsum(0)
    groups: dict[tuple[int, ...], list[Any]] = {}
    slots = []
    for item, sid in zip(item_ids, map(tuple, sids.tolist()), strict=True):
        of_sid = groups.setdefault(sid, [])
        of_sid.append(item)
        slots.append(len(of_sid))
    grouped = torch.tensor(list(groups), device="cpu")
    tables = {
        _WHOLE: {
            "item_id": list(item_ids),
            "origin_codebook": sids.tolist(),
            "codebook": sids.tolist(),
            "offset_codebook": (sids + offsets).tolist(),
            "index": slots,
        },
        _GROUPS: {
            "codebook": grouped.tolist(),
            "offset_codebook": (grouped + offsets).tolist(),
            "itemids": list(groups.values()),
        },
    }
    most = max(map(len, groups.values()))
    manifest = {
        "bundle_uuid": uuid.uuid4().hex,
        "codebook": list(sizes),
        "capacity": most,
        "max_observed_items_per_sid": most,
        "artifacts": {
            name: {
                "save_type": "parquet",
                "rows": len(columns["codebook"]),
                "location": str(path / name),
            }
            for name, columns in tables.items()
        },
        "item_id_type": "string" if isinstance(item_ids[0], str) else "int64",
    }
    with replacing(path) as partial:
        for name, columns in tables.items():
            (partial / name).mkdir(parents=True)
            pyarrow.parquet.write_table(pyarrow.table(columns), partial / name / "part-0.parquet")
        write_text(partial / MANIFEST, json.dumps(manifest, indent=2))
