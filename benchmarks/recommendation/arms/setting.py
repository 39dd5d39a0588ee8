"""What all methods of an experiment share, and the interface of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import Catalogue
from crs_fast.crs.training.train import TrainResult

if TYPE_CHECKING:
    from crs_fast.crs.backbones import Backbone

# The line about a method that knows what no system can know begins with this. Tables show such a
# method; plots leave it out.
ORACLE = "oracle: labels given after the dialogue"

Signals = tuple[str, ...]
Shape = tuple[int, int] | None

# Dialogues and whether to write replies -> predictions per decoding ("" is the method's own).
Answer = Callable[[Sequence[Dialogue], bool], dict[str, list[Prediction]]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One experiment; all of its methods get the same setting.

    dataset: catalogue and dialogues
    catalogue: makes the items' SIDs from the names of their signals, such as ("text",), and a shape
        (levels, codes), where None is the experiment's shape; cached
    joint: the data set joined with another that is trained on first (see `join`), and the SIDs of
        both, from the same arguments; cached
    backbone: loads a new copy of the language model; the seed is for what starts at random
    training: the settings of training; each run sets its own seed and learning rate
    pretrained: whether the backbone is pretrained
    split: the dialogues that are answered; nothing may be trained on them
    held: ids of held-out items; nothing may be trained on them
    num_beams, max_new_tokens: settings of the search and of replies
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
        """Convert a trained backbone, in place, to the dtype that it answers in."""
        if self.bf16_answers:
            backbone.to(torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained method. `training` is None if nothing was trained, and `bundle` if no language
    model writes the item."""

    answer: Answer
    training: TrainResult | None = None
    bundle: Bundle | None = None


class Arm(Protocol):
    """A method. `about` is a line that says what it does."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def trains(self) -> bool: ...

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        """Train in `folder`, or go on from the newest checkpoint there."""
        ...
