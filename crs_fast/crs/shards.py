"""Work that is done file by file: in this process, or by Ray Data on many machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Shard:
    """One file that is read and the file that is written for it."""

    source: str
    target: str


# Does one shard and says what came of it, in values of JSON; a ValueError or an OSError is the
# shard's own.
Work = Callable[[Shard], dict[str, Any]]


def do_shards(
    op: str,
    shards: Sequence[Shard],
    make_work: Callable[..., Work],
    arguments: tuple[Any, ...],
    *,
    workers: int | None,
    device: str | None,
) -> Iterator[dict[str, Any]]:
    """What comes of each shard, as it is done: its `source` and `target`, and what the work says of
    it, or its `source` and the `error`, which stops no other shard.

    Args:
        op: who asks, for error messages.
        make_work: called with `arguments` once in each worker; a class of a module.
        workers: so many actors of Ray Data, each of which takes whole files; None works in this
            process, without Ray.
        device: if it is "cuda", each actor gets a GPU; None requests no GPU from Ray.
    """
    if workers is None:
        return map(partial(_attempted, make_work(*arguments)), shards)
    try:
        from ray import data
    except ImportError as error:
        raise ImportError(
            f"{op}: workers need {error.name}: pip install 'ray[data]'", name=error.name
        ) from error
    files = data.from_items(
        [{"source": shard.source, "target": shard.target} for shard in shards],
        override_num_blocks=len(shards),
    )
    done = files.map_batches(
        _Actor,
        fn_constructor_args=(make_work, arguments),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_gpus=1 if device is not None and device.startswith("cuda") else None,
    )
    return (json.loads(row["result"]) for row in done.iter_rows())


class _Actor:
    """A Ray Data actor: a batch is one row, which is one file."""

    def __init__(self, make_work: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
        self.work = make_work(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["source"], batch["target"], strict=True)
        return {"result": [json.dumps(_attempted(self.work, Shard(*pair))) for pair in pairs]}


def _attempted(work: Work, shard: Shard) -> dict[str, Any]:
    try:
        return {"source": shard.source, "target": shard.target, **work(shard)}
    except (ValueError, OSError) as error:
        return {"source": shard.source, "error": str(error)}


def shards_of(
    op: str,
    sources: str | Path | Sequence[str | Path],
    out: Path,
    *,
    reads: str,
    endings: Sequence[str],
    writes: str,
    ending: str,
) -> list[Shard]:
    """The files among `sources`, which may be folders, and their targets in the folder `out`.

    Args:
        reads, writes: what the files hold, for error messages.
        endings: of files that are read, a longer one before one that it ends with.
        ending: of files that are written.

    Raises:
        FileNotFoundError: a source is not there, or a folder holds no such file.
        ValueError: two sources have one name, or `out` holds a source or what is not of them.
    """
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    for path in map(Path, listed):
        if path.is_dir() and path.resolve() == out.resolve():
            raise ValueError(f"{op}: out must not hold a source (got {path})")
    shards: dict[Path, Shard] = {}
    for source in (file for path in listed for file in _files(op, Path(path), reads, endings)):
        own = next(one for one in endings if source.name.endswith(one))
        target = (out / f"{source.name.removesuffix(own)}{ending}").resolve()
        if target in shards:
            raise ValueError(
                f"{op}: sources must have different names "
                f"(got {shards[target].source} and {source})"
            )
        if target == source:
            raise ValueError(f"{op}: out must not hold a source (got {source})")
        shards[target] = Shard(str(source), str(target))
    others = sorted(path.name for path in out.glob(f"*{ending}") if path.resolve() not in shards)
    if others:
        raise ValueError(f"{op}: out must hold {writes} of these sources only (got {others[0]})")
    return list(shards.values())


def _files(op: str, path: Path, reads: str, endings: Sequence[str]) -> Iterable[Path]:
    """A source's files; their paths are absolute, because Ray's workers run elsewhere."""
    if path.is_file() and not path.name.endswith(tuple(endings)):
        raise ValueError(f"{op}: sources must end with {', '.join(endings)} (got {path.name})")
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [
        file.resolve()
        for file in files
        if file.name.endswith(tuple(endings)) and not file.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(
            f"{op}: sources must be files of {reads} or folders of them (got {path})"
        )
    return files
