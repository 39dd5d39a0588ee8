"""The public standard on ReDial: Kostric and Balog, "A Standardized Re-evaluation of Conversational
Recommender Systems on the ReDial Dataset", SIGIR 2026.

Messages are not joined into turns. An instance is a recommender message that names an item and is
not the first message (`crs_fast.crs.evaluation.messages`). Recall@k is the share of all targets
that are among the top k of their instance's ranking. There are three variants:

all               every target
fresh             targets that no earlier message named; named items stay in the ranking. The
                  published "fresh" rows are comparable with this variant.
fresh, filtered   the same targets, but named items are left out of the ranking. This alone raises
                  the figures, so no published row is comparable.

SR is the share of dialogues in which, at some instance, the top item is one that the seeker liked
or has seen. RDL is, per dialogue, the sum over its instances of 1.0 (top item liked) or 0.5 (seen,
and not liked), divided by the number of its instances; then the mean over dialogues. The paper
leaves some choices open, which are made here as follows:

- The turns of a dialogue are its instances of the variant, not all recommender messages. A dialogue
  without an instance does not count; a dialogue whose form is empty counts as a failure.
- In the fresh variants an instance needs a fresh target, and a top item that an earlier message
  named earns nothing. Otherwise repeated items would earn rewards through the form.
- An item that was seen and is disliked earns 0.5, which follows the definition's words.

The paper publishes its naive baseline (items of the context, latest first) as .043 / .090 / .090 on
all targets. Over the whole context it must reach 1 - 4,472 / 4,975 = .101 at 10, because this is
the share of targets named before, and it does here (.042 / .101 / .101; fresh 0). Which contexts
the paper leaves out is not public.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.baselines import (
    Rankings,
    copy_ranking,
    copy_then_popularity_ranking,
    popularity_ranking,
)
from crs_fast.crs.evaluation.messages import RecMessage, recommending_messages
from crs_fast.crs.evaluation.metrics import bootstrap_interval
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.score import Targets, target_figures
from crs_fast.crs.evaluation.targets import recommendation_targets

ALL, FRESH, FILTERED = VARIANTS = ("all", "fresh", "fresh, filtered")
KS = (1, 10, 50)
NAIVE = "naive (context items, latest first)"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of the paper's tables: R@1, R@10 and R@50 of both variants, and SR and RDL of the fresh
    one, or None if the paper gives none."""

    all: tuple[float, float, float]
    fresh: tuple[float, float, float]
    sr: float | None = None
    rdl: float | None = None


# These are the paper's figures, not measured here. In another setting of the paper, MESE has fresh
# R@1 .027 and R@50 .371, and PECRS .027 and .362.
PUBLISHED = {
    "naive": PublishedRow((0.043, 0.090, 0.090), (0.0, 0.0, 0.0)),
    "KBRD": PublishedRow((0.033, 0.177, 0.332), (0.017, 0.148, 0.300), 0.046, 0.036),
    "KGSF": PublishedRow((0.032, 0.177, 0.369), (0.016, 0.147, 0.327), 0.036, 0.036),
    "UniCRS": PublishedRow((0.049, 0.213, 0.421), (0.024, 0.180, 0.335), 0.048, 0.030),
    "ECR": PublishedRow((0.049, 0.220, 0.428), (0.026, 0.181, 0.337), 0.063, 0.033),
    "MESE": PublishedRow((0.032, 0.178, 0.381), (0.025, 0.159, 0.361), 0.051, 0.043),
    "PECRS": PublishedRow((0.044, 0.189, 0.383), (0.022, 0.143, 0.341), 0.052, 0.047),
    "ReFICR (7 B)": PublishedRow((0.049, 0.270, 0.507), (0.018, 0.213, 0.465), 0.053, 0.053),
}


@dataclass(frozen=True, slots=True)
class MessageAnswer:
    """A system's rankings at an instance, with named items and without them."""

    ranking: Sequence[str]
    filtered: Sequence[str]


def standard_figures(
    dataset: CrsDataset,
    split: str,
    systems: Mapping[str, Sequence[Prediction]],
) -> dict[str, Any]:
    """All figures of the standard, for some systems and for baselines without a model.

    An instance at the first message of a turn has the turn's context, so its ranking is the turn's.
    For an instance at a later message it is the one in `Prediction.messages`. If this is missing,
    the turn's ranking, which has read less, takes its place; "stand-ins" counts such instances per
    system.

    Args:
        dataset: the data set; popularity is counted on its "train" split.
        split: the split of the predictions.
        systems: predictions for whole dialogues of the split, by the system's name in the tables.
            Only instances that all systems answered count.

    Returns:
        "stand-ins" and, for each variant, method -> figures: `n` targets, `instances`, `hits@k`,
        `recall@k`, `sr` and `rdl` (these two only if the data set has the seekers' forms), each
        with its 95 % interval by bootstrap over dialogues. {} if there is no instance.
    """
    dialogues = dataset.splits[split]
    predicted = [{(p.dialogue, p.turn): p for p in of_one} for of_one in systems.values()]
    instances = [
        instance
        for instance in recommending_messages(dialogues)
        if all((instance.dialogue, instance.turn) in of_one for of_one in predicted)
    ]
    if not instances or not systems:
        return {}
    answers = [system_answers(instances, of_one) for of_one in predicted]
    own = {name: given for name, (given, _) in zip(systems, answers, strict=True)}
    methods = {**own, **_baselines(dataset, instances)}
    return {
        "stand-ins": {name: n for name, (_, n) in zip(systems, answers, strict=True)},
        **{
            variant: {
                label: variant_figures(dialogues, instances, given, variant)
                for label, given in methods.items()
            }
            for variant in VARIANTS
        },
    }


def system_answers(
    instances: Sequence[RecMessage], predictions: dict[tuple[int, int], Prediction]
) -> tuple[list[MessageAnswer], int]:
    """A system's answer at each instance, and how many of the answers are stand-ins (see
    `standard_figures`)."""
    answers, stand_ins = [], 0
    for instance in instances:
        turn = predictions[instance.dialogue, instance.turn]
        later = turn.messages.get(instance.message)
        said = turn if later is None or later.ranking is None else later
        stand_ins += bool(instance.message) and said is turn
        ranking = said.ranking or []
        searched = ranking if said.new_ranking is None else said.new_ranking
        filtered = [item for item in searched if item not in instance.named]
        answers.append(MessageAnswer(ranking, filtered))
    return answers, stand_ins


def _baselines(
    dataset: CrsDataset, instances: Sequence[RecMessage]
) -> dict[str, list[MessageAnswer]]:
    train = recommendation_targets(dataset.splits["train"])
    naive = copy_ranking(instances, 50)
    nothing: Rankings = [[] for _ in instances]
    popular, mixed = (
        [rank(instances, dataset.items, train, 50, new) for new in (False, True)]
        for rank in (popularity_ranking, copy_then_popularity_ranking)
    )
    rankings = {
        NAIVE: (naive, nothing),
        "popularity": popular,
        "copy, then popularity": mixed,
    }
    return {
        label: [MessageAnswer(*pair) for pair in zip(*both, strict=True)]
        for label, both in rankings.items()
    }


def variant_targets(
    instances: Sequence[RecMessage], answers: Sequence[MessageAnswer], variant: str
) -> Targets:
    """The rank of each target of a variant in its instance's ranking."""
    ranks, keys = [], []
    for instance, answer in zip(instances, answers, strict=True):
        ranking = answer.filtered if variant == FILTERED else answer.ranking
        place = {item: rank for rank, item in enumerate(ranking, 1)}
        for item, new in zip(instance.targets, instance.new, strict=True):
            if new or variant == ALL:
                ranks.append(place.get(item, 0))
                keys.append((instance.dialogue, instance.turn, item))
    return Targets(np.array(ranks, dtype=np.int64), np.array([k[0] for k in keys]), keys)


def variant_figures(
    dialogues: Sequence[Dialogue],
    instances: Sequence[RecMessage],
    answers: Sequence[MessageAnswer],
    variant: str,
) -> dict[str, Any]:
    """All figures of one method and one variant (see `standard_figures`)."""
    figures = target_figures(variant_targets(instances, answers, variant))
    wanted = [variant == ALL or any(instance.new) for instance in instances]
    figures["instances"] = sum(wanted)
    if any(d.liked or d.seen for d in dialogues):
        rewards: dict[int, list[float]] = defaultdict(list)
        for instance, answer, counts in zip(instances, answers, wanted, strict=True):
            if counts:
                reward = _reward(dialogues[instance.dialogue], instance, answer, variant)
                rewards[instance.dialogue].append(reward)
        for measure, values in {
            "sr": [float(any(of_one)) for of_one in rewards.values()],
            "rdl": [sum(of_one) / len(of_one) for of_one in rewards.values()],
        }.items():
            if values:
                figures[measure] = float(np.mean(values))
                figures[f"{measure} interval"] = bootstrap_interval(values, list(rewards))
    return figures


def _reward(dialogue: Dialogue, instance: RecMessage, answer: MessageAnswer, variant: str) -> float:
    """The reward of an instance's top item in RDL."""
    ranking = answer.filtered if variant == FILTERED else answer.ranking
    if not ranking or (variant != ALL and ranking[0] in instance.named):
        return 0.0
    if dialogue.liked.get(ranking[0]) == "liked":
        return 1.0
    return 0.5 if ranking[0] in dialogue.seen else 0.0
