"""Resumes from a checkpoint, if it holds the same kind of weights that are to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crs_fast._files import write_text
from crs_fast.crs.training.config import TrainConfig

NOTE = "weights.json"


def note_weights(folder: Path, config: TrainConfig) -> None:
    """Note in `folder` which weights its checkpoints hold."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / NOTE, json.dumps(_weights(config), indent=1) + "\n")


def newest_checkpoint(folder: Path, config: TrainConfig) -> str | None:
    """The newest checkpoint in `folder`, or None.

    Raises:
        ValueError: the checkpoints hold all weights and `config` trains an adapter, or the reverse;
            or they are of another rank, alpha, dropout, precision or `embedding_lr_ratio`.
    """
    from transformers.trainer_utils import get_last_checkpoint

    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
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


def _weights(config: TrainConfig) -> dict[str, Any]:
    kind = ("lora_alpha", "lora_dropout", "qlora") if config.lora_rank else ("embeddings",)
    names = ("lora_rank", *kind, "embedding_lr_ratio")
    return {name: getattr(config, name) for name in names}
