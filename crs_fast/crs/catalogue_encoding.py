"""Text embeddings of a large catalogue, file by file: in one process, or by Ray Data on many
machines. What is done already is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import replacing
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.data.jsonl import read_items
from crs_fast.crs.data.tables import items_from
from crs_fast.quantize import encode_texts
from crs_fast.quantize.text_encoder import EncoderLike, load_encoder

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
_RECORD = b"crs_fast"


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of items and the file of its embeddings."""

    source: str
    target: str


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
            process, without Ray. With a device "cuda", each gets a GPU.

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
    _parquet()
    shards = _shards(sources, Path(out))
    Path(out).mkdir(parents=True, exist_ok=True)
    if workers is None:
        return map(_ShardEncoder(encoder, batch_size, device), shards)
    return _by_ray(shards, (encoder, batch_size, device), workers)


class _ShardEncoder:
    """Encodes shards one after another with an encoder that is loaded once, when it is needed."""

    def __init__(self, encoder: EncoderLike, batch_size: int, device: str | None) -> None:
        self.encoder, self.batch_size, self.device = encoder, batch_size, device
        self.name = encoder if encoder is None or isinstance(encoder, str) else _class_name(encoder)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        try:
            return {"source": shard.source, **self._encode(Path(shard.source), Path(shard.target))}
        except (ValueError, OSError) as error:
            return {"source": shard.source, "error": str(error)}

    def _encode(self, source: Path, target: Path) -> dict[str, Any]:
        record = {"sha256": _sha256(source), "encoder": self.name}
        count = _items_done(target, record)
        if kept := count is not None:
            return {"target": str(target), "items": count, "kept": kept}
        items = _read(source)
        self.encoder = load_encoder(self.encoder, self.device)
        x = encode_texts([item.text() for item in items], self.encoder, self.batch_size)
        _write(target, [item.item_id for item in items], x, record)
        return {"target": str(target), "items": len(items), "kept": kept}


class _RayEncoder:
    """A Ray Data actor: a batch is one row, which is one file."""

    def __init__(self, *arguments: Any) -> None:
        self.encode = _ShardEncoder(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["source"], batch["target"], strict=True)
        results = [self.encode(Shard(*pair)) for pair in pairs]
        return {"result": [json.dumps(result) for result in results]}


def _by_ray(
    shards: Sequence[Shard], arguments: tuple[Any, ...], workers: int
) -> Iterator[dict[str, Any]]:
    try:
        from ray import data
    except ImportError as error:
        raise ImportError(
            f"encode_catalogue: workers need {error.name}: pip install 'ray[data]'",
            name=error.name,
        ) from error
    device = arguments[-1]
    files = data.from_items(
        [{"source": shard.source, "target": shard.target} for shard in shards],
        override_num_blocks=len(shards),
    )
    done = files.map_batches(
        _RayEncoder,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_gpus=1 if device is not None and device.startswith("cuda") else None,
    )
    return (json.loads(row["result"]) for row in done.iter_rows())


def _shards(sources: str | Path | Sequence[str | Path], out: Path) -> list[Shard]:
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    shards: dict[Path, Shard] = {}
    for source in (file for path in listed for file in _files(Path(path))):
        ending = next(ending for ending in ENDINGS if source.name.endswith(ending))
        target = (out / f"{source.name.removesuffix(ending)}.parquet").resolve()
        if target in shards:
            raise ValueError(
                "encode_catalogue: sources must have different names "
                f"(got {shards[target].source} and {source})"
            )
        if target == source:
            raise ValueError(f"encode_catalogue: out must not hold a source (got {source})")
        shards[target] = Shard(str(source), str(target))
    others = sorted(path.name for path in out.glob("*.parquet") if path.resolve() not in shards)
    if others:
        raise ValueError(
            f"encode_catalogue: out must hold embeddings of these sources only (got {others[0]})"
        )
    return list(shards.values())


def _files(path: Path) -> Iterable[Path]:
    """A source's files; their paths are absolute, because Ray's workers run elsewhere."""
    if path.is_file() and not path.name.endswith(ENDINGS):
        raise ValueError(
            f"encode_catalogue: sources must end with {', '.join(ENDINGS)} (got {path.name})"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [
        file.resolve()
        for file in files
        if file.name.endswith(ENDINGS) and not file.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(
            f"encode_catalogue: sources must be files of items or folders of them (got {path})"
        )
    return files


def _read(source: Path) -> tuple[Item, ...]:
    if source.suffix == ".parquet":
        items = items_from(_parquet().read_table(source))
    else:
        items = read_items(source)
    if not items:
        raise ValueError(f"encode_catalogue: {source.name} must hold items (got none)")
    return items


def _write(target: Path, ids: list[str], x: torch.Tensor, record: dict[str, Any]) -> None:
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), x.shape[1])
    table = pa.table({"item_id": pa.array(ids, pa.string()), "embedding": vectors})
    with replacing(target) as partial:
        metadata = {_RECORD: json.dumps(record, sort_keys=True).encode()}
        _parquet().write_table(table.replace_schema_metadata(metadata), partial)


def _items_done(target: Path, record: dict[str, Any]) -> int | None:
    """How many items a finished shard holds; None if it must be made."""
    if not target.is_file():
        return None
    schema = _parquet().read_schema(target)
    if (schema.metadata or {}).get(_RECORD) != json.dumps(record, sort_keys=True).encode():
        return None
    return int(_parquet().read_metadata(target).num_rows)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("encode_catalogue: needs `pip install pyarrow`") from error
    return parquet


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _class_name(encoder: Any) -> str:
    kind = encoder if hasattr(encoder, "__qualname__") else type(encoder)
    return f"{kind.__module__}.{kind.__qualname__}"
