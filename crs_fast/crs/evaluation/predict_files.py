"""Predictions for files of dialogues, file by file: in one process, or by Ray Data on many
machines. What is done already is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from crs_fast._files import write_text
from crs_fast.crs.checkpoint import MANIFEST
from crs_fast.crs.data.dialogue import Dialogue, Item
from crs_fast.crs.data.jsonl import read_dialogues
from crs_fast.crs.data.parquet import need_pyarrow, read_parquet_dialogues
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import write_predictions
from crs_fast.crs.evaluation.reply_perplexity import note_gold_nll
from crs_fast.crs.joined_beams import check_share
from crs_fast.crs.manifest import sha256_of
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.shards import Shard, do_shards, shards_of

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_OP = "predict_files"


def predict_files(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    model: str | Path,
    *,
    num_beams: int = 50,
    replies: bool = True,
    max_new_tokens: int = 64,
    join: float | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer every recommender turn of some dialogues, as `evaluate` does, each file of dialogues
    into a predictions.jsonl of its own. All of them together are the predictions of all dialogues.

        for file in sources: write_predictions(out / file, predict(read_dialogues(file)))

    `<name>.done` beside it says of which bytes, model and options a file was made. It is kept if
    they are the same, so a run that was interrupted goes on where it stopped.

    Args:
        sources: files of dialogues, or folders of them: .jsonl (plain or gzipped) or .parquet with
            the same keys as columns (see `read_parquet_dialogues`).
        out: folder for `<name>.jsonl`.
        model: a model directory.
        num_beams, replies, max_new_tokens: see `evaluate`.
        join: share of the nearest neighbours by text, see `Recommender.with_join`.
        dtype, device, trust_remote_code: as in `Recommender.from_pretrained`.
        workers: so many actors of Ray Data, each of which takes whole files; None works in this
            process, without Ray. With a device "cuda", each gets a GPU; with None they
            run on CPUs.

    Yields:
        For each file as it is done: `source`, `target`, `turns` (how many), `kept` (whether it was
        done already), or `source` and `error`. A file that cannot be read stops no other.

    Raises:
        FileNotFoundError: a source or the model is not there, or a folder holds no dialogues.
        ValueError: two sources have one name, `out` holds predictions of other sources, or a number
            is below 1.
        ImportError: with `workers`, Ray is not installed; for .parquet, pyarrow is not.
    """
    numbers = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "workers": workers}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"predict_files: {name} must be at least 1 (got {value})")
    if join is not None:
        check_share(join)
    folder = Path(model).resolve()
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"predict_files: model must be a model directory (got {model})")
    shards = shards_of(
        _OP,
        sources,
        Path(out),
        reads="dialogues",
        endings=ENDINGS,
        writes="predictions",
        ending=".jsonl",
    )
    if any(shard.source.endswith(".parquet") for shard in shards):
        need_pyarrow(_OP)
    Path(out).mkdir(parents=True, exist_ok=True)
    options = {"num_beams": num_beams, "replies": replies, "max_new_tokens": max_new_tokens}
    return do_shards(
        _OP,
        shards,
        _ShardPredictor,
        (str(folder), options, join, dtype, device, trust_remote_code),
        workers=workers,
        device=device,
    )


class _ShardPredictor:
    """Answers shards one after another with a model that is loaded once, when it is needed."""

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        join: float | None,
        dtype: torch.dtype | None,
        device: str | None,
        trust_remote_code: bool,
    ) -> None:
        self.model, self.options, self.dtype, self.device = model, options, dtype, device
        self.join, self.trust_remote_code = join, trust_remote_code
        # The manifest has the checksums of all files.
        self.record = {"model": sha256_of(Path(model) / MANIFEST), "dtype": str(dtype), **options}
        if join is not None:
            self.record["join"] = join

    @cached_property
    def recommender(self) -> Recommender:
        return Recommender.from_pretrained(
            self.model,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        ).with_join(self.join)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        source, target = Path(shard.source), Path(shard.target)
        record = {"source": sha256_of(source), **self.record}
        done = target.with_name(f"{target.name.removesuffix('.jsonl')}.done")
        turns = _turns_done(target, done, record)
        if kept := turns is not None:
            return {"turns": turns, "kept": kept}
        bundle = self.recommender.bundle
        dialogues = _read(source, bundle.items)
        if not dialogues:
            raise ValueError(f"predict_files: {source.name} must hold dialogues (got none)")
        replies = self.options["replies"]
        predictions = predict(
            bundle,
            dialogues,
            **self.options,
            free_rankings=replies,
            join=self.recommender.join,
            progress=False,
        )
        if replies:
            note_gold_nll(bundle, dialogues, predictions, progress=False)
        done.unlink(missing_ok=True)  # until the new file is whole
        write_predictions(target, predictions)
        written = {**record, "predictions": sha256_of(target), "turns": len(predictions)}
        write_text(done, json.dumps(written, sort_keys=True) + "\n")
        return {"turns": len(predictions), "kept": kept}


def _read(source: Path, items: Sequence[Item]) -> tuple[Dialogue, ...]:
    if source.suffix == ".parquet":
        return read_parquet_dialogues(_OP, source, items)
    return read_dialogues(source, items)


def _turns_done(target: Path, done: Path, record: dict[str, Any]) -> int | None:
    """How many turns a finished shard holds; None if it must be made."""
    if not (target.is_file() and done.is_file()):
        return None
    try:
        written = json.loads(done.read_text(encoding="utf-8"))
    except ValueError:
        return None
    turns = written.get("turns") if isinstance(written, dict) else None
    is_same = written == {**record, "predictions": sha256_of(target), "turns": turns}
    return turns if is_same else None
