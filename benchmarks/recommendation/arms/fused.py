"""An arm's ranking fused with the items named before: a hybrid of a model that knows the catalogue
and a rule that models of few parameters or few steps are slow to learn. Nothing is trained.

Two rules. Reciprocal rank fusion (Cormack et al. 2009, doi 10.1145/1571941.1572114) adds up
1 / (60 + rank) over both lists: neither scores nor a weight to tune. Odds of repeating take each
expert for what it knows: how often training dialogues come back to the item named last, next to
last, ... against how likely the model finds each item given that it is a new one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.recommendation.arms.setting import Arm
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.baselines import recent_first
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.targets import RecTurn, recommendation_targets

LONGEST = 50
PLACES = 10  # recency ranks with odds of their own; what is older shares the last one's

Fuse = Callable[[Prediction], Prediction]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = 60) -> list[str]:
    """All items of some rankings by the sum of 1 / (k + rank), ranks from 1. Ties go to the one met
    first, rankings in order."""
    scores: Counter[str] = Counter()
    for ranking in rankings:
        scores.update({item: 1 / (k + rank) for rank, item in enumerate(ranking, start=1)})
    return sorted(scores, key=lambda item: -scores[item])


def fused_with_copy(prediction: Prediction) -> Prediction:
    """The prediction with its ranking fused with the items named before. One that ranks nothing
    stays so."""
    own, copied = prediction.ranking, recent_first(prediction.named)
    return _reranked(prediction, own and reciprocal_rank_fusion([own, copied]))


def repeat_odds(turns: Sequence[RecTurn]) -> list[float]:
    """How often a turn recommends the item named last, next to last, ..., [`PLACES`]: of the turns
    before which so many items were named, the share whose targets hold it. The last entry is of all
    older items together; 0 where there is no such turn."""
    asked, hits = Counter[int](), Counter[int]()
    for turn in turns:
        for age, item in enumerate(recent_first(turn.named)):
            place = min(age, PLACES - 1)
            asked[place] += 1
            hits[place] += item in turn.targets
    return [hits[place] / max(asked[place], 1) for place in range(PLACES)]


def ranked_by_odds(
    model: Mapping[str, float], copied: Sequence[str], odds: Sequence[float]
) -> list[str]:
    """All items of a model and a dialogue, best first: one named before stands by its odds of being
    repeated, a new one by the probability that none is, times the model's own given that it is a
    new item. Ties go to the model's order.

    Args:
        model: the probability of each item that it ranks, best first.
        copied: items named before, the latest first.
        odds: see `repeat_odds`.
    """
    chance = {item: odds[min(age, len(odds) - 1)] for age, item in enumerate(copied)}
    new = {item: p for item, p in model.items() if item not in chance}
    on_named = sum(model.values()) - sum(new.values())
    # What the model leaves for new items; never less than what it gives those that are listed.
    rest = max(1 - on_named, sum(new.values())) or 1.0
    none_repeated = math.prod(1 - p for p in chance.values())
    final = chance | {item: none_repeated * p / rest for item, p in new.items()}
    return sorted(dict.fromkeys([*model, *copied]), key=lambda item: -final[item])


def fused_by_odds(prediction: Prediction, odds: Sequence[float]) -> Prediction:
    """The prediction `ranked_by_odds`. One that ranks nothing stays so.

    Raises:
        ValueError: a ranking without scores.
    """
    own, copied = prediction.ranking, recent_first(prediction.named)
    if not own:
        return _reranked(prediction, own)
    if prediction.scores is None:
        raise ValueError(
            "copy-odds: predictions must have scores (got none in dialogue "
            f"{prediction.dialogue_id}, turn {prediction.turn}: answer it again)"
        )
    model = dict(zip(own, map(math.exp, prediction.scores), strict=True))
    return _reranked(prediction, ranked_by_odds(model, copied, odds))


def _reranked(prediction: Prediction, ranking: list[str] | None) -> Prediction:
    """With another ranking, and without its reply, which spoke of its own top item. New-only
    figures are of the search without named items, as before."""
    return replace(
        prediction,
        ranking=ranking and ranking[:LONGEST],
        new_ranking=prediction.without_named() if ranking else prediction.new_ranking,
        scores=None,
        reply=None,
        reply_items=[],
        invalid_items=0,
        gold_nll=None,
    )


def _by_odds(dataset: CrsDataset) -> Fuse:
    odds = repeat_odds(recommendation_targets(dataset.splits["train"]))
    return lambda prediction: fused_by_odds(prediction, odds)


# What a rule makes of a data set.
RULES: dict[str, Callable[[CrsDataset], Fuse]] = {
    "copy": lambda dataset: fused_with_copy,
    "copy-odds": _by_odds,
}


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

    def fuse(self, dataset: CrsDataset) -> Fuse:
        """What makes a prediction of `base` one of this arm."""
        return RULES[self.rule](dataset)
