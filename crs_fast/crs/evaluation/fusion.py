"""Fuses a system's ranking with the items named before. Small or briefly trained models know the
catalogue better than they copy, and copying is a simple rule. Nothing is trained.

There are two rules. Reciprocal rank fusion (Cormack et al. 2009, doi 10.1145/1571941.1572114) sums
1 / (60 + rank) over both lists, so that it needs neither scores nor a weight. The odds of repeating
compare two probabilities: how often training dialogues repeat the item named last, next to last,
and so on, and how likely the model finds each other item given that it is new.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.evaluation.baselines import recent_first
from crs_fast.crs.evaluation.predictions import MessageRanking, Prediction
from crs_fast.crs.evaluation.targets import RecTurn, recommendation_targets

RULES = ("ranks", "odds")
LONGEST = 50
PLACES = 10  # recency ranks with odds of their own; all older items share the last rank's odds


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = 60) -> list[str]:
    """The items of all rankings, sorted by their sum of 1 / (k + rank), with ranks from 1. Ties go
    to the item that comes first when the rankings are read in order."""
    scores: Counter[str] = Counter()
    for ranking in rankings:
        scores.update({item: 1 / (k + rank) for rank, item in enumerate(ranking, start=1)})
    return sorted(scores, key=lambda item: -scores[item])


def fused_by_ranks(prediction: Prediction) -> Prediction:
    """The prediction, its ranking fused with the items named before by reciprocal rank. A
    prediction without a ranking gets none."""
    own, copied = prediction.ranking, recent_first(prediction.named)
    return _reranked(prediction, own and reciprocal_rank_fusion([own, copied]))


def repeat_odds(turns: Sequence[RecTurn]) -> list[float]:
    """How often a turn recommends the item named last, next to last, and so on, [`PLACES`]. Entry i
    is the share of turns whose targets hold the item of recency i, among turns with so many named
    items, or 0 if there is no such turn. The last entry is for all older items together."""
    turns_at, hits = Counter[int](), Counter[int]()
    for turn in turns:
        for age, item in enumerate(recent_first(turn.named)):
            place = min(age, PLACES - 1)
            turns_at[place] += 1
            hits[place] += item in turn.targets
    return [hits[place] / max(turns_at[place], 1) for place in range(PLACES)]


def ranked_by_odds(
    model: Mapping[str, float], copied: Sequence[str], odds: Sequence[float]
) -> list[str]:
    """The items that the model ranks and those named before, best first. The score of a named item
    is its odds of being repeated. The score of a new item is the probability that no item is
    repeated, times the model's probability of it given that the item is new. Ties go to the model's
    order.

    Args:
        model: the model's probability of each item in its ranking, best first.
        copied: items named before, the latest first.
        odds: see `repeat_odds`.
    """
    chance = {item: odds[min(age, len(odds) - 1)] for age, item in enumerate(copied)}
    new = {item: p for item, p in model.items() if item not in chance}
    on_named = sum(model.values()) - sum(new.values())
    # The model's probability of all new items, at least that of the new items in its ranking.
    rest = max(1 - on_named, sum(new.values())) or 1.0
    none_repeated = math.prod(1 - p for p in chance.values())
    final = chance | {item: none_repeated * p / rest for item, p in new.items()}
    return sorted(dict.fromkeys([*model, *copied]), key=lambda item: -final[item])


def fused_by_odds(prediction: Prediction, odds: Sequence[float]) -> Prediction:
    """The prediction, its ranking made by `ranked_by_odds`. A prediction without a ranking gets
    none.

    Raises:
        ValueError: the ranking has no scores.
    """
    own, copied = prediction.ranking, recent_first(prediction.named)
    if not own:
        return _reranked(prediction, own)
    if prediction.scores is None:
        raise ValueError(
            "fuse_with_copying: predictions must have scores (got none in dialogue "
            f"{prediction.dialogue_id}, turn {prediction.turn}: answer it again)"
        )
    model = dict(zip(own, map(math.exp, prediction.scores), strict=True))
    return _reranked(prediction, ranked_by_odds(model, copied, odds))


def _reranked(prediction: Prediction, ranking: list[str] | None) -> Prediction:
    """The prediction with another ranking. It has no reply, since the reply is about the old top
    item. The new-only ranking stays that of the search without named items."""
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


def fuse_with_copying(
    predictions: Sequence[Prediction], rule: str = "odds", train: Sequence[Dialogue] = ()
) -> list[Prediction]:
    """Fuse every ranking of a system's predictions with the items named before. Replies are
    dropped, because they are about the system's own top item.

        "ranks"   score(item) = sum over both lists of 1 / (60 + rank)
        "odds"    score(named item) = how often training dialogues repeat the item named last,
                                      next to last, ...
                  score(new item)   = P(nothing is repeated) * P(item | it is new)

    Args:
        predictions: the system's predictions; "odds" needs their `scores`.
        rule: one of `RULES`.
        train: training dialogues, in which "odds" counts repetitions.

    Raises:
        ValueError: the rule is unknown, or "odds" is given without scores or training dialogues.
    """
    if rule not in RULES:
        raise ValueError(f"fuse_with_copying: rule must be one of {RULES} (got {rule!r})")
    if rule == "ranks":
        return [_with_messages(prediction, fused_by_ranks) for prediction in predictions]
    if not train:
        raise ValueError("fuse_with_copying: train must hold dialogues with 'odds' (got none)")
    odds = repeat_odds(recommendation_targets(train))
    by_odds = partial(fused_by_odds, odds=odds)
    return [_with_messages(prediction, by_odds) for prediction in predictions]


def _with_messages(prediction: Prediction, fuse: Callable[[Prediction], Prediction]) -> Prediction:
    """Fuse a prediction and its rankings inside the turn."""
    messages = {}
    for number, said in prediction.messages.items():
        asked = replace(
            prediction,
            ranking=said.ranking,
            new_ranking=said.new_ranking,
            scores=said.scores,
            named=said.named,
        )
        fused = fuse(asked)
        messages[number] = MessageRanking(fused.ranking, fused.new_ranking, named=said.named)
    return replace(fuse(prediction), messages=messages)
