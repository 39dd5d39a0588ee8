"""Methods without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recommendation.arms.setting import Fitted, Setting
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.baselines import (
    Rankings,
    copy_ranking,
    copy_then_popularity_ranking,
    popularity_ranking,
)
from crs_fast.crs.evaluation.predictions import Prediction, blank_predictions
from crs_fast.crs.evaluation.targets import RecTurn, recommendation_targets
from crs_fast.crs.training.config import TrainConfig

Rank = Callable[[Sequence[RecTurn], CrsDataset, Sequence[RecTurn], bool], Rankings]


@dataclass(frozen=True, slots=True)
class BaselineArm:
    """A method that only ranks: `rank(turns, dataset, training turns, leave out named items)`."""

    name: str
    about: str
    rank: Rank
    trains = False

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        train = recommendation_targets(setting.dataset.splits["train"])

        def answer(dialogues: Sequence[Dialogue], replies: bool) -> dict[str, list[Prediction]]:
            predictions = blank_predictions(dialogues)
            rec = [p for p in predictions if p.gold_items]
            turns = recommendation_targets(dialogues)
            both = (self.rank(turns, setting.dataset, train, new) for new in (False, True))
            for p, ranking, new_ranking in zip(rec, *both, strict=True):
                p.ranking, p.new_ranking = ranking, new_ranking
            return {"": predictions}

        return Fitted(answer)


POPULARITY = BaselineArm(
    "popularity",
    "the most frequent training targets",
    lambda turns, data, train, new: popularity_ranking(turns, data.items, train, 50, new),
)
COPY = BaselineArm(
    "copy",
    "items named before, the latest first",
    lambda turns, data, train, new: copy_ranking(turns, 50),
)
COPY_POPULARITY = BaselineArm(
    "copy-popularity",
    "copy, then popularity",
    lambda turns, data, train, new: copy_then_popularity_ranking(turns, data.items, train, 50, new),
)
