"""GCRS with finer modes: one mode token per intent with which a recommender chats or recommends,
and the two plain mode tokens for turns without a label.

Training turns with a label train the finer token. If only the validation split has labels, as in
INSPIRED, its turns train the finer tokens and nothing else, neither words nor items. So the method
learns items from the same dialogues as the other methods, and modes from more dialogues.
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
        labelled: tuple[Dialogue, ...] = ()
        if not modes and setting.split != "valid":
            labelled = without(splits.get("valid", ()), setting.held)
            modes = fine_modes(labelled)
        if not modes:
            raise ValueError(
                f"{self.name}: the data set must say what recommender turns are for, in training "
                "or validation, unless that is answered "
                f"(got no intent in {setting.dataset.name!r})"
            )
        mode_only = {dialogue.dialogue_id for dialogue in labelled}

        def instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
            if dialogue.dialogue_id in mode_only:
                return mode_instances(builder, dialogue)
            return builder.instances(dialogue)

        extended = {**splits, "train": (*splits["train"], *labelled)}
        dataset = replace(setting.dataset, splits=extended)
        arm = GenerativeArm(self.name, self.about, instances=instances, fine_modes=modes)
        return arm.fit(replace(setting, dataset=dataset), folder, config)


def fine_modes(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Every pair of mode and intent in the dialogues, as in "rec:explain", sorted."""
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
    by_turn = {
        i.turn_index: replace(i, response=i.response[:1])
        for i in builder.instances(dialogue)
        if dialogue.turns[i.turn_index].intent is not None
    }
    return list(by_turn.values())
