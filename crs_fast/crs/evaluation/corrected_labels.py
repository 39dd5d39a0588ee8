"""Scores the same predictions by the data set's labels and by labels that were corrected by hand
(`Turn.corrected`; see `crs_fast.crs.data.inspired2`), to see how much of the error is due to
labels.

With corrected labels, the targets of a turn are its corrected items, and a target is new if no
earlier turn, by either role, has it as a corrected item. The rankings stay those of the
predictions: their contexts have the data set's own mentions, and these were filtered out of the
new-only search. Items that only the corrected labels name are removed from that ranking afterwards.

INSPIRED2 corrects fewer labels than a reader finds wrong. Of INSPIRED's 292 test targets it drops
16 and keeps 276, among them false ones like `Marvel (2008)` and `Tell (2014)`, and it adds 77. So
the share of misses that it explains is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crs_fast.crs.data.dialogue import RECOMMENDER, CrsDataset, Dialogue
from crs_fast.crs.evaluation.metrics import bootstrap_interval, target_values
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.score import (
    Targets,
    baseline_predictions,
    protocol_targets,
    target_figures,
)
from crs_fast.crs.evaluation.targets import RecTurn, TargetCounts, recommendation_targets

ORIGINAL, CORRECTED = LABELS = ("original", "corrected")
PROTOCOLS = ("paper", "new-only")
KS = (1, 10, 50)


def corrected_turns(dialogues: Sequence[Dialogue]) -> list[RecTurn]:
    """Every recommender turn of the dialogues that have corrected labels, with its targets by these
    labels; turns of small talk have no targets."""
    found = []
    for d, dialogue in enumerate(dialogues):
        if any(turn.corrected is None for turn in dialogue.turns):
            continue
        named: list[str] = []
        for t, turn in enumerate(dialogue.turns):
            items = turn.corrected or ()
            if turn.role == RECOMMENDER:
                new = tuple(item not in named for item in items)
                found.append(RecTurn(d, t, items, new, tuple(named)))
            named += items
    return found


def count_corrected_targets(dialogues: Sequence[Dialogue]) -> TargetCounts:
    """`count_targets` by corrected labels. These are distinct, so mentions equal targets."""
    turns = corrected_turns(dialogues)
    targets = sum(len(turn.targets) for turn in turns)
    return TargetCounts(
        mentions=targets,
        targets=targets,
        new_targets=sum(sum(turn.new) for turn in turns),
        rec_turns=sum(bool(turn.targets) for turn in turns),
        recommender_turns=len(turns),
    )


def label_figures(
    dataset: CrsDataset,
    split: str,
    predictions: Sequence[Prediction],
    name: str = "crs_fast",
) -> dict[str, Any]:
    """Figures of a system and of baselines by both label sets, and the causes of the system's
    misses.

    Returns:
        {} without corrected labels; else a dict with

        "original", "corrected"   protocol ("paper", "new-only") -> method -> `target_figures`
        "kept", "false", "added"  the system's `target_figures` over the targets in both label
                                  sets, in the original one alone, and in the corrected one alone
        "misses@k"                {"n": the system's misses by original labels, "false": how many
                                  of them have a false label as target, "share", "share interval"}
        "no item"                 number of corrected targets that the catalogue lacks
        "unranked turns"          number of turns that recommend by corrected labels and have no
                                  ranking in the predictions; their targets count as misses
    """
    dialogues, train = dataset.splits[split], recommendation_targets(dataset.splits["train"])
    answers = {(p.dialogue, p.turn): p for p in predictions}
    turns = [t for t in corrected_turns(dialogues) if (t.dialogue, t.turn) in answers]
    if not turns:
        return {}
    corrected = [_relabelled(answers[t.dialogue, t.turn], t) for t in turns]
    labelled = {t.dialogue for t in turns}
    original = [p for p in predictions if p.dialogue in labelled]
    own = {ORIGINAL: original, CORRECTED: corrected}
    asked = {
        ORIGINAL: [t for t in recommendation_targets(dialogues) if (t.dialogue, t.turn) in answers
                   and t.dialogue in labelled],
        CORRECTED: [t for t in turns if t.targets],
    }  # fmt: skip
    figures: dict[str, Any] = {}
    for labels in LABELS:
        figures[labels] = {}
        for protocol in PROTOCOLS:
            new = protocol == "new-only"
            methods = {name: own[labels]} | baseline_predictions(
                dataset.items, dialogues, asked[labels], train, {}, new
            )
            figures[labels][protocol] = {
                label: target_figures(protocol_targets(p, protocol)) for label, p in methods.items()
            }
    by_original, by_corrected = (protocol_targets(own[labels], "paper") for labels in LABELS)
    held, wanted = set(by_original.keys), set(by_corrected.keys)
    is_false = np.array([key not in wanted for key in by_original.keys], dtype=bool)
    is_added = np.array([key not in held for key in by_corrected.keys], dtype=bool)
    figures["kept"] = target_figures(_some(by_original, ~is_false))
    figures["false"] = target_figures(_some(by_original, is_false))
    figures["added"] = target_figures(_some(by_corrected, is_added))
    for k in KS:
        figures[f"misses@{k}"] = _misses(by_original, is_false, k)
    catalogue = {item.item_id for item in dataset.items}
    figures["no item"] = sum(key[2] not in catalogue for key in by_corrected.keys)
    figures["unranked turns"] = sum(p.ranking is None for p in corrected if p.gold_items)
    return figures


def _relabelled(prediction: Prediction, turn: RecTurn) -> Prediction:
    """The prediction with gold and named items by corrected labels."""
    new = [item for item in prediction.without_named() if item not in turn.named]
    return replace(
        prediction, gold_items=list(turn.targets), named=list(turn.named), new_ranking=new
    )


def _some(targets: Targets, chosen: np.ndarray) -> Targets:
    keys = [key for key, wanted in zip(targets.keys, chosen, strict=True) if wanted]
    return Targets(targets.ranks[chosen], targets.dialogues[chosen], keys)


def _misses(targets: Targets, is_false: np.ndarray, k: int) -> dict[str, Any]:
    missed = target_values(targets.ranks, k) == 0
    figures: dict[str, Any] = {"n": int(missed.sum()), "false": int(is_false[missed].sum())}
    if figures["n"]:
        figures["share"] = figures["false"] / figures["n"]
        figures["share interval"] = bootstrap_interval(is_false[missed], targets.dialogues[missed])
    return figures
