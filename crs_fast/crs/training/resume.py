"""Resumes from the newest whole checkpoint, if it holds the same kind of weights that are to be
trained."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from crs_fast._files import sync_tree, write_text
from crs_fast.crs.training.config import TrainConfig

NOTE = "weights.json"
WHOLE = "whole.json"  # in a checkpoint: the size of each of its files, written last

logger = logging.getLogger(__name__)


def note_weights(folder: Path, config: TrainConfig) -> None:
    """Note in `folder` which weights its checkpoints hold."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / NOTE, json.dumps(_weights(config), indent=1) + "\n")


def newest_checkpoint(folder: Path, config: TrainConfig) -> str | None:
    """The newest whole checkpoint in `folder`, or None. A newer one that a crash cut off is passed
    over with a warning.

    Raises:
        ValueError: the checkpoints hold all weights and `config` trains an adapter, or the reverse;
            or they are of another rank, alpha, dropout, precision or `embedding_lr_ratio`.
    """
    checkpoint = None
    for candidate in reversed(_checkpoints(folder)):
        if is_whole(candidate):
            checkpoint = str(candidate)
            break
        logger.warning(f"train: {candidate} is not whole, so training does not go on from it")
    if checkpoint is None or not (folder / NOTE).is_file():
        return checkpoint
    noted = {"embedding_lr_ratio": 1.0, **json.loads((folder / NOTE).read_text())}
    for name, value in _weights(config).items():
        if noted.get(name) != value:
            raise ValueError(
                f"train: {name} must be that of the checkpoints in {folder}, {noted.get(name)}, "
                f"to go on from them (got {value})"
            )
    return checkpoint


def begin_checkpoint(checkpoint: Path) -> None:
    """Say that the checkpoint is being written, where there may be an older one of that step."""
    (checkpoint / WHOLE).unlink(missing_ok=True)


def mark_whole(checkpoint: Path) -> None:
    """Flush a checkpoint to the disk, and then say that it is whole."""
    sync_tree(checkpoint)
    sizes = {
        file.relative_to(checkpoint).as_posix(): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file()
    }
    write_text(checkpoint / WHOLE, json.dumps(sizes, indent=1) + "\n")


def is_whole(checkpoint: Path) -> bool:
    """Whether `mark_whole` was reached and all files are still there."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_bytes())
        return bool(sizes) and all(
            (checkpoint / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def drop_old(newest: Path, keep: int) -> None:
    """Delete the checkpoints that were written before the `keep` newest ones. `newest` must be
    whole; one that is not does not count."""
    others = [other for other in _checkpoints(newest.parent) if other != newest]
    others.sort(key=lambda other: (is_whole(other), other.stat().st_mtime))
    for old in others[: max(0, len(others) - (keep - 1))]:
        (old / WHOLE).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a training's folder, by their steps."""
    steps = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(steps, key=lambda path: int(path.name[11:]))


def _weights(config: TrainConfig) -> dict[str, Any]:
    kind = ("lora_alpha", "lora_dropout", "qlora") if config.lora_rank else ("embeddings",)
    names = ("lora_rank", *kind, "embedding_lr_ratio")
    return {name: getattr(config, name) for name in names}
