"""An arm's ranking fused with `copy`, the items named before: a hybrid of a model that knows the
catalogue and a rule that models of few parameters or few steps are slow to learn.

Reciprocal rank fusion (Cormack et al. 2009, doi 10.1145/1571941.1572114) adds up 1 / (60 + rank)
over both lists, so it needs neither scores nor a weight to tune, and works for every arm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crs_fast.crs.arms.setting import Arm
from crs_fast.crs.baselines import recent_first
from crs_fast.crs.predictions import Prediction

LONGEST = 50


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = 60) -> list[str]:
    """All items of some rankings by the sum of 1 / (k + rank), ranks from 1. Ties go to the one met
    first, rankings in order."""
    scores: Counter[str] = Counter()
    for ranking in rankings:
        scores.update({item: 1 / (k + rank) for rank, item in enumerate(ranking, start=1)})
    return sorted(scores, key=lambda item: -scores[item])


def fused_with_copy(prediction: Prediction) -> Prediction:
    """The prediction with its ranking fused with the items named before, and without its reply,
    which spoke of its own top item. One that ranks nothing stays so."""
    ranking, new_ranking = prediction.ranking, prediction.new_ranking
    if ranking:
        ranking = reciprocal_rank_fusion([ranking, recent_first(prediction.named)])[:LONGEST]
        new_ranking = prediction.without_named()
    return replace(
        prediction,
        ranking=ranking,
        new_ranking=new_ranking,
        reply=None,
        reply_items=[],
        invalid_items=0,
        gold_nll=None,
    )


@dataclass(frozen=True, slots=True)
class FusedArm:
    """`base` with `fused_with_copy`. Nothing of its own is trained or searched: it is made of what
    `base` has answered."""

    base: Arm
    trains = True  # its base

    @property
    def name(self) -> str:
        return f"{self.base.name}+copy"

    @property
    def about(self) -> str:
        return f"{self.base.about}, fused with copy"
