"""A method whose ranking is that of another method, fused with the items named before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.recommendation.arms.setting import Arm
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.fusion import fuse_with_copying
from crs_fast.crs.evaluation.predictions import Prediction

RULES = {"copy": "ranks", "copy-odds": "odds"}  # name here -> name of the library's rule


@dataclass(frozen=True, slots=True)
class FusedArm:
    """The method `base` with its ranking fused by one of `RULES`. It trains and searches nothing,
    since it is made of the answers of `base`."""

    base: Arm
    rule: str
    trains = True  # its base does

    @property
    def name(self) -> str:
        return f"{self.base.name}+{self.rule}"

    @property
    def about(self) -> str:
        return f"{self.base.about}, fused with {self.rule}"

    def fuse(self, dataset: CrsDataset, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions of this method, made of those of `base`."""
        return fuse_with_copying(predictions, RULES[self.rule], dataset.splits["train"])
