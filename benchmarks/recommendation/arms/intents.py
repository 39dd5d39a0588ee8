"""GCRS with intents finer than two: a mode token for every intent under which a recommender chats
or recommends, beside the two plain ones for turns without a label.

Training turns with a label write the finer token. Where only the validation split has labels, as
INSPIRED's, its turns teach the finer tokens and nothing else: no words and no items, so that the
arm's items come from the same dialogues as everybody's. Its modes come from more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.recommendation.arms.generative import GenerativeArm
from benchmarks.recommendation.arms.setting import Fitted, Setting
from benchmarks.recommendation.cold_start import without
from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.data.dialogue import RECOMMENDER, Dialogue
from crs_fast.crs.sequence import Instance, SequenceBuilder
from crs_fast.crs.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class FineIntentsArm:
    """See the module. Needs a data set whose turns have an `intent`."""

    name: str = "fine-intents"
    about: str = "gcrs with a mode token for every intent, trained on turns that have a label"
    trains = True

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        splits = setting.dataset.splits
        modes = fine_modes(splits["train"])
        teachers: tuple[Dialogue, ...] = ()
        if not modes and setting.split != "valid":
            teachers = without(splits.get("valid", ()), setting.held)
            modes = fine_modes(teachers)
        if not modes:
            raise ValueError(
                f"{self.name}: the data set must say what recommender turns are for, in training "
                "or validation, unless that is answered "
                f"(got no intent in {setting.dataset.name!r})"
            )
        mode_only = {dialogue.dialogue_id for dialogue in teachers}

        def instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
            if dialogue.dialogue_id in mode_only:
                return mode_instances(builder, dialogue)
            return builder.instances(dialogue)

        both = replace(setting.dataset, splits={**splits, "train": (*splits["train"], *teachers)})
        arm = GenerativeArm(self.name, self.about, instances=instances, fine_modes=modes)
        return arm.fit(replace(setting, dataset=both), folder, config)


def fine_modes(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Every intent of the dialogues under its mode, "rec:explain", sorted."""
    return tuple(
        sorted(
            {
                f"{REC if turn.mentions else CHAT}:{turn.intent}"
                for dialogue in dialogues
                for turn in dialogue.turns
                if turn.role == RECOMMENDER and turn.intent is not None
            }
        )
    )


def mode_instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """For each turn with an intent, one instance whose response is the mode token alone."""
    told = {
        i.turn_index: replace(i, response=i.response[:1])
        for i in builder.instances(dialogue)
        if dialogue.turns[i.turn_index].intent is not None
    }
    return list(told.values())
