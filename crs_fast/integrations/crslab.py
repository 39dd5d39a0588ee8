"""CRSLab, UniCRS and iEvaLM: rankings in a file that their scorers can read.

One JSON object per line, and one line per recommender turn that names an item:

    {"dialogue": "20001", "turn": 3, "ranks": [7, 3], "labels": [7]}

`ranks` are the recommended items, best first, and `labels` the items of the reply. Each scorer
takes them in a loop over the lines:

    CRSLab   for label in row["labels"]: evaluator.rec_evaluate(row["ranks"], label)
    UniCRS   evaluator.evaluate([row["ranks"]] * len(row["labels"]), row["labels"])
    iEvaLM   metric.evaluate(row["ranks"], row["labels"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from crs_fast.crs.data.lines import write_lines
from crs_fast.crs.evaluation.predictions import Prediction


def write_ranks(
    path: str | Path,
    predictions: Sequence[Prediction],
    entity2id: Mapping[str, int] | None = None,
) -> None:
    """Write the rankings of predictions (`Evaluation.predictions`, `read_predictions`).

    Args:
        path: the file; whole or not at all.
        predictions: those without a gold item are left out, as those scorers leave them out.
        entity2id: the numbers by which the scorer's code names items, from its `entity2id.json`.
            None writes our item ids.

    Raises:
        ValueError: `entity2id` lacks an item.
    """

    def numbers(item_ids: Sequence[str]) -> list[str] | list[int]:
        if entity2id is None:
            return list(item_ids)
        known = [entity2id[i] if i in entity2id else by_number.get(i) for i in item_ids]
        if None in known:
            unknown = item_ids[known.index(None)]
            raise ValueError(f"write_ranks: entity2id must name every item (got no {unknown!r})")
        return [number for number in known if number is not None]

    by_number = {str(number): number for number in (entity2id or {}).values()}
    write_lines(
        path,
        [
            {
                "dialogue": p.dialogue_id,
                "turn": p.turn,
                "ranks": numbers(p.ranking or []),
                "labels": numbers(p.gold_items),
            }
            for p in predictions
            if p.gold_items
        ],
    )
