"""Text embeddings of a large catalogue, file by file: in one process, or by Ray Data on many
machines. What is done already is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import replacing
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.data.jsonl import read_items
from crs_fast.crs.data.parquet import need_pyarrow, read_parquet_items
from crs_fast.crs.manifest import sha256_of
from crs_fast.crs.shards import Shard, do_shards, shards_of
from crs_fast.quantize import encode_texts
from crs_fast.quantize.text_encoder import EncoderLike, load_encoder

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
_OP = "encode_catalogue"
_RECORD = b"crs_fast"


def encode_catalogue(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    encoder: EncoderLike = None,
    *,
    batch_size: int = 64,
    device: str | None = None,
    workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Embed the texts of items, each file of items into a parquet file of its own.

        for file in sources: write(out / file, item_id, encode_texts(item.text() for item in file))

    A file in `out` is whole or not there, and says of which bytes and encoder it was made. It is
    kept if they are the same, so a run that was interrupted goes on where it stopped.

    Args:
        sources: files of items, or folders of them: .jsonl (as items.jsonl, plain or gzipped) or
            .parquet with the same keys as columns.
        out: folder for `<name>.parquet` with the columns `item_id` and `embedding` (float32
            [D]), which `load_embeddings` reads.
        encoder: see `encode_texts`. One that is no name is known by that of its class or function,
            and with `workers` it is sent to them.
        batch_size: texts per forward pass.
        device: where an encoder given by its name runs.
        workers: so many actors of Ray Data, each of which takes whole files; None works in this
            process, without Ray. With a device "cuda", each gets a GPU; None
            requests no GPU from Ray.

    Yields:
        For each file as it is done: `source`, `target`, `items` (how many), `kept` (whether it was
        done already), or `source` and `error`. A file that cannot be read stops no other.

    Raises:
        FileNotFoundError: a source is not there, or a folder holds no items.
        ValueError: two sources have one name, `out` holds embeddings of other sources, or
            `batch_size` or `workers` is below 1.
        ImportError: pyarrow, or with `workers` Ray, is not installed.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"encode_catalogue: {name} must be at least 1 (got {value})")
    need_pyarrow(_OP)
    shards = shards_of(
        _OP,
        sources,
        Path(out),
        reads="items",
        endings=ENDINGS,
        writes="embeddings",
        ending=".parquet",
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    return do_shards(
        _OP,
        shards,
        _ShardEncoder,
        (encoder, batch_size, device),
        workers=workers,
        device=device,
    )


class _ShardEncoder:
    """Encodes shards one after another with an encoder that is loaded once, when it is needed."""

    def __init__(self, encoder: EncoderLike, batch_size: int, device: str | None) -> None:
        self.encoder, self.batch_size, self.device = encoder, batch_size, device
        self.name = encoder if encoder is None or isinstance(encoder, str) else _class_name(encoder)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        source, target = Path(shard.source), Path(shard.target)
        record = {"sha256": sha256_of(source), "encoder": self.name}
        count = _items_done(target, record)
        if kept := count is not None:
            return {"items": count, "kept": kept}
        items = _read(source)
        self.encoder = load_encoder(self.encoder, self.device)
        x = encode_texts([item.text() for item in items], self.encoder, self.batch_size)
        _write(target, [item.item_id for item in items], x, record)
        return {"items": len(items), "kept": kept}


def _read(source: Path) -> tuple[Item, ...]:
    is_parquet = source.suffix == ".parquet"
    items = read_parquet_items(_OP, source) if is_parquet else read_items(source)
    if not items:
        raise ValueError(f"encode_catalogue: {source.name} must hold items (got none)")
    return items


def _write(target: Path, ids: list[str], x: torch.Tensor, record: dict[str, Any]) -> None:
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), x.shape[1])
    table = pa.table({"item_id": pa.array(ids, pa.string()), "embedding": vectors})
    with replacing(target) as partial:
        metadata = {_RECORD: json.dumps(record, sort_keys=True).encode()}
        need_pyarrow(_OP).write_table(table.replace_schema_metadata(metadata), partial)


def _items_done(target: Path, record: dict[str, Any]) -> int | None:
    """How many items a finished shard holds; None if it must be made."""
    if not target.is_file():
        return None
    schema = need_pyarrow(_OP).read_schema(target)
    if (schema.metadata or {}).get(_RECORD) != json.dumps(record, sort_keys=True).encode():
        return None
    return int(need_pyarrow(_OP).read_metadata(target).num_rows)


def _class_name(encoder: Any) -> str:
    kind = encoder if hasattr(encoder, "__qualname__") else type(encoder)
    return f"{kind.__module__}.{kind.__qualname__}"
