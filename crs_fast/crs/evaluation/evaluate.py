"""Predicts a split and scores it: all figures of a trained recommender in one call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crs_fast._arguments import Rule, at_least, check_arguments, check_kind
from crs_fast._files import write_text
from crs_fast.crs.data.dialogue import CrsDataset, need_distinct_ids, need_splits
from crs_fast.crs.evaluation.corrected_labels import label_figures
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import Prediction, write_predictions
from crs_fast.crs.evaluation.reply_perplexity import note_gold_nll
from crs_fast.crs.evaluation.report import scores_markdown
from crs_fast.crs.evaluation.score import (
    Baseline,
    mode_figures,
    recommendation_figures,
    text_figures,
)
from crs_fast.crs.evaluation.sigir_standard import standard_figures
from crs_fast.crs.evaluation.standard_report import labels_markdown, standard_markdown
from crs_fast.crs.joined_beams import JoinedBeams
from crs_fast.crs.recommender import Recommender
from crs_fast.decode.search_request import NORMALIZE

_RULES = (
    Rule("split", str),
    Rule("normalize", str, f"one of {NORMALIZE}", NORMALIZE.__contains__),
    Rule("num_beams max_new_tokens", int, *at_least(1)),
    Rule("limit", int, *at_least(1), optional=True),
    Rule("replies progress", bool),
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one run.

    recommendation, mode, text: see `crs_fast.crs.evaluation.score`
    standard: see `crs_fast.crs.evaluation.sigir_standard`
    labels: see `crs_fast.crs.evaluation.corrected_labels`; empty without corrected labels
    """

    dataset: str
    split: str
    seconds: float
    settings: dict[str, Any]
    recommendation: dict[str, dict[str, dict[str, Any]]]
    mode: dict[str, Any]
    text: dict[str, Any]
    predictions: list[Prediction]
    standard: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, without the predictions."""
        return {key: value for key, value in _fields(self).items() if key != "predictions"}

    def save(self, folder: str | Path) -> None:
        """Write evaluation.json, evaluation.md and predictions.jsonl."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "evaluation.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write_text(folder / "evaluation.md", self.markdown())
        write_predictions(folder / "predictions.jsonl", self.predictions)

    def markdown(self) -> str:
        """All tables, which a reader should see together."""
        tables = [
            scores_markdown(self.dataset, self.split, self.recommendation, self.mode, self.text),
            standard_markdown(self.dataset, self.split, self.standard),
            labels_markdown(self.labels),
        ]
        return "\n".join(filter(None, tables))


def _fields(evaluation: Evaluation) -> dict[str, Any]:
    return {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}


def evaluate(
    recommender: Recommender,
    dataset: CrsDataset,
    split: str = "test",
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    replies: bool = True,
    limit: int | None = None,
    baselines: dict[str, Baseline] | None = None,
    join: JoinedBeams | None = None,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a recommender on one split, in the protocols of `recommendation_figures`.

    Args:
        recommender: the system.
        dataset: the data set; the popularity baseline is counted on its "train" split.
        split: "valid" or "test".
        num_beams: width of the beam search; R@50 needs at least 50.
        normalize: see `crs_fast.recommend`.
        replies: also generate replies (BLEU, Distinct) and score the gold ones (perplexity).
        limit: evaluate only the first so many dialogues.
        baselines: further rankings to compare with, by name.
        join: how the candidates of another source join the beams, see `JoinedBeams`; None takes the
            recommender's own, if it has one.

    Raises:
        ValueError: the data set lacks this split or "train", the split has no target, or two of its
            dialogues have one id.
    """
    check_kind("evaluate: dataset", dataset, CrsDataset, "a CrsDataset")
    check_arguments(
        "evaluate",
        _RULES,
        split=split,
        num_beams=num_beams,
        normalize=normalize,
        replies=replies,
        limit=limit,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    check_kind("evaluate: join", join, JoinedBeams | None, "JoinedBeams or None")
    check_kind("evaluate: baselines", baselines, Mapping | None, "a dictionary or None")
    for name, baseline in (baselines or {}).items():
        check_kind("evaluate: names of baselines", name, str, "strings")
        if not callable(baseline):
            raise ValueError(f"evaluate: baselines[{name!r}] must be a function (got {baseline!r})")
    need_splits(dataset, "evaluate", ("train", split))
    if not hasattr(recommender, "bundle"):
        raise ValueError(
            f"evaluate: recommender must be a Recommender (got {type(recommender).__name__})"
        )
    start = time.perf_counter()
    join = join or recommender.join
    dialogues = dataset.splits[split][:limit]
    need_distinct_ids(dialogues, "evaluate")  # or the predictions can't be saved
    predictions = predict(
        recommender.bundle,
        dialogues,
        num_beams=num_beams,
        normalize=normalize,
        replies=replies,
        free_rankings=replies,
        join=join,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    recommendation = recommendation_figures(dataset, split, predictions, baselines)
    text: dict[str, Any] = {}
    if replies:
        note_gold_nll(recommender.bundle, dialogues, predictions, progress=progress)
        text = {"mode of replies": "gold mode, the model's own top item"}
        text |= text_figures(predictions)
    settings: dict[str, Any] = dict(
        num_beams=num_beams, normalize=normalize, dialogues=len(dialogues)
    )
    if join is not None:
        settings["join"] = {"share": join.share, "rule": join.rule}
    return Evaluation(
        dataset.name,
        split,
        time.perf_counter() - start,
        settings,
        recommendation,
        mode_figures(predictions),
        text,
        predictions,
        standard_figures(dataset, split, {"crs_fast": predictions}),
        label_figures(dataset, split, predictions),
    )


def log_test(folder: Path, **run: Any) -> None:
    """Add a line to `test_log.jsonl` in `folder` when a run on the test split begins or goes on,
    since every figure should say how often the test split was looked at."""
    line = {"time": time.strftime("%FT%TZ", time.gmtime()), **run}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "test_log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
