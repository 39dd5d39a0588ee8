"""What all arms of an experiment share, and what each must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import Catalogue
from crs_fast.crs.training.train import TrainResult

if TYPE_CHECKING:
    from crs_fast.crs.backbones import Backbone

# How the line about an arm begins that knows what no system can: tables show it, headlines don't.
ORACLE = "oracle: labels given after the dialogue"

Signals = tuple[str, ...]
Shape = tuple[int, int] | None

# Dialogues and whether replies are wanted -> predictions by way of decoding ("" is the arm's own).
Answer = Callable[[Sequence[Dialogue], bool], dict[str, list[Prediction]]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One experiment: every arm gets the same of all this.

    dataset: catalogue and dialogues
    catalogue: makes the items' SIDs from the names of their signals, ("text",) say, and a shape
        (levels, codes), None for everybody's; cached
    joint: the data set joined with another to train on first (see `join`), and its SIDs, made of
        the same; cached
    backbone: loads the language model afresh; the seed is of what it starts at random
    training: seed and learning rate are the run's, the rest is everybody's
    pretrained: whether the backbone knows a language already
    split: the dialogues that are answered, which nothing may be trained on
    held: ids of items held out on purpose, which nothing may be trained on
    num_beams, max_new_tokens: of answering
    bf16_answers: answer with the trained backbone in bfloat16
    """

    dataset: CrsDataset
    catalogue: Callable[[Signals, Shape], Catalogue]
    backbone: Callable[[int], Backbone]
    training: TrainConfig
    joint: Callable[[Signals, Shape], tuple[CrsDataset, Catalogue]] | None = None
    pretrained: bool = True
    split: str = "test"
    held: frozenset[str] = frozenset()
    num_beams: int = 50
    max_new_tokens: int = 40
    bf16_answers: bool = False
    progress: bool = False

    def for_answers(self, backbone: Any) -> None:
        """Put a trained backbone, in place, into the numbers it answers in."""
        if self.bf16_answers:
            backbone.to(torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained arm. `training` is None where nothing was trained."""

    answer: Answer
    training: TrainResult | None = None


class Arm(Protocol):
    """One way to recommend. `about` is the line that tables show."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def trains(self) -> bool: ...

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        """Train in `folder`, going on from a checkpoint that is there."""
        ...
