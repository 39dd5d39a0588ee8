"""An arm whose ranking is another arm's, fused with the items named before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.recommendation.arms.setting import Arm
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.fusion import fuse_with_copying
from crs_fast.crs.evaluation.predictions import Prediction

RULES = {"copy": "ranks", "copy-odds": "odds"}  # the library's rule for each name


@dataclass(frozen=True, slots=True)
class FusedArm:
    """`base`, its ranking fused by one of `RULES`. Nothing of its own is trained or searched: it is
    made of what `base` has answered."""

    base: Arm
    rule: str
    trains = True  # its base

    @property
    def name(self) -> str:
        return f"{self.base.name}+{self.rule}"

    @property
    def about(self) -> str:
        return f"{self.base.about}, fused with {self.rule}"

    def fuse(self, dataset: CrsDataset, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Predictions of `base` as this arm's."""
        return fuse_with_copying(predictions, RULES[self.rule], dataset.splits["train"])
