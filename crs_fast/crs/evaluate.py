"""The paper's protocol and the ones it lacks, printed together: every figure with n, hits and an
interval, beside baselines without a model on the same targets."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crs_fast.crs.baselines import (
    Rankings,
    copy_ranking,
    copy_then_popularity_ranking,
    popularity_ranking,
)
from crs_fast.crs.dialogue import CrsDataset, Dialogue
from crs_fast.crs.metrics import (
    DEFAULT_KS,
    bootstrap_interval,
    distinct_n,
    perplexity,
    ranking_metrics,
    sacre_bleu,
    target_values,
)
from crs_fast.crs.model import Recommender
from crs_fast.crs.predict import Prediction, gold_reply_nll, predict
from crs_fast.crs.targets import RecTurn, recommendation_targets, target_ranks

Baseline = Callable[[Sequence[RecTurn], Sequence[Dialogue], bool], Rankings]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one run.

    recommendation: protocol ("paper", "new-only", "free") -> method -> figures
        (`n`, `hits@k`, `recall@k`, `ndcg@k`, `mrr@k` and 95 % intervals of recall)
    mode: 2 x 2 table of gold against chosen mode, accuracy and base rate
    text: perplexities, BLEU, Distinct-1..4, invalid items
    """

    dataset: str
    split: str
    seconds: float
    settings: dict[str, Any]
    recommendation: dict[str, dict[str, dict[str, Any]]]
    mode: dict[str, Any]
    text: dict[str, Any]
    predictions: list[Prediction]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the predictions."""
        return {key: value for key, value in _fields(self).items() if key != "predictions"}

    def save(self, folder: str | Path) -> None:
        """Write evaluation.json, evaluation.md and predictions.jsonl."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(p)) + "\n" for p in self.predictions)
        for name, text in (
            ("evaluation.json", json.dumps(self.to_dict(), indent=1) + "\n"),
            ("evaluation.md", self.markdown()),
            ("predictions.jsonl", lines),
        ):
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)

    def markdown(self) -> str:
        """The tables a reader should see together."""
        from crs_fast.crs.report import evaluation_markdown

        return evaluation_markdown(self)


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
    max_new_tokens: int = 64,
    progress: bool = True,
) -> Evaluation:
    """Evaluate on one split.

    Protocols: "paper" (mode forced to the gold one), "new-only" (targets not named before, named
    items filtered out of the search) and "free" (the model chooses its mode; a wrong CHAT is a
    miss).

    Args:
        recommender: the system.
        dataset: its "train" split gives the popularity baseline.
        split: "valid" or "test".
        num_beams: width of the beam search, at least 50 for all of R@50.
        normalize: see `crs_fast.recommend`.
        replies: also generate replies (BLEU, Distinct) and score the gold ones (perplexity).
        limit: only the first so many dialogues.
        baselines: more rankings to put beside, by name.

    Raises:
        ValueError: the dataset has no such split, or the split has no target.
    """
    if not dataset.splits.get(split):
        raise ValueError(
            f"evaluate: split must be one of {sorted(dataset.splits)} and not empty (got {split!r})"
        )
    start = time.perf_counter()
    dialogues = dataset.splits[split][:limit]
    predictions = predict(
        recommender.bundle,
        dialogues,
        num_beams=num_beams,
        normalize=normalize,
        replies=replies,
        free_rankings=replies,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    recommendation = _recommendation(dataset, dialogues, predictions, baselines or {})
    text: dict[str, Any] = {}
    if replies:
        text = _text(recommender, dialogues, predictions, progress)
    settings = dict(num_beams=num_beams, normalize=normalize, dialogues=len(dialogues))
    return Evaluation(
        dataset.name,
        split,
        time.perf_counter() - start,
        settings,
        recommendation,
        _mode(predictions),
        text,
        predictions,
    )


def _recommendation(
    dataset: CrsDataset,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    more: dict[str, Baseline],
) -> dict[str, dict[str, dict[str, Any]]]:
    turns = recommendation_targets(dialogues)
    if not turns:
        raise ValueError("evaluate: the split must hold a recommendation (got none)")
    train = recommendation_targets(dataset.splits["train"])
    rec = [p for p in predictions if p.gold_items]
    free = [p.ranking or [] if p.chooses_rec else [] for p in rec]
    protocols: dict[str, dict[str, dict[str, Any]]] = {}
    for protocol, ours in (
        ("paper", [p.ranking or [] for p in rec]),
        ("new-only", [p.new_ranking or [] for p in rec]),
        ("free", free),
    ):
        new = protocol == "new-only"
        methods: dict[str, Rankings] = {"crs_fast": ours}
        if protocol != "free":
            methods |= {
                "popularity": popularity_ranking(turns, dataset.items, train, 50, new),
                "copy": copy_ranking(turns, 50),
                "copy, then popularity": copy_then_popularity_ranking(
                    turns, dataset.items, train, 50, new
                ),
                **{name: rank(turns, dialogues, new) for name, rank in more.items()},
            }
        protocols[protocol] = {
            name: _figures(turns, ranking, new) for name, ranking in methods.items()
        }
    return protocols


def _figures(turns: Sequence[RecTurn], rankings: Rankings, new_only: bool) -> dict[str, Any]:
    ranks, groups = target_ranks(turns, rankings, new_only)
    if not ranks:
        return {"n": 0}
    figures: dict[str, Any] = dict(ranking_metrics(ranks).to_dict())
    for k in DEFAULT_KS:
        figures[f"recall@{k} interval"] = bootstrap_interval(target_values(ranks, k), groups)
    return figures


def _mode(predictions: Sequence[Prediction]) -> dict[str, Any]:
    table = {f"{g} -> {c}": 0 for g in ("chat", "rec") for c in ("chat", "rec")}
    for p in predictions:
        gold = "rec" if p.gold_items else "chat"
        table[f"{gold} -> {'rec' if p.chooses_rec else 'chat'}"] += 1
    n = len(predictions)
    right = table["chat -> chat"] + table["rec -> rec"]
    named = [p for p in predictions if p.chooses_rec]
    hits = sum(p.ranking[0] in p.gold_items for p in named if p.ranking)
    return {
        **table,
        "n": n,
        "accuracy": right / n,
        "rec base rate": (table["rec -> chat"] + table["rec -> rec"]) / n,
        # Of the turns at which the model recommends, those whose top item is a gold one.
        "item precision": hits / len(named) if named else 0.0,
    }


def _text(
    recommender: Recommender,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    progress: bool,
) -> dict[str, Any]:
    replies = [p.reply or "" for p in predictions]
    figures: dict[str, Any] = {
        "mode of replies": "gold mode, the model's own top item",
        "n": len(replies),
        "bleu": sacre_bleu(replies, [p.gold_reply for p in predictions]),
        "invalid items": sum(p.invalid_items for p in predictions),
    }
    figures |= {f"distinct-{n}": distinct_n(replies, n) for n in (1, 2, 3, 4)}
    scored = gold_reply_nll(recommender.bundle, dialogues, predictions, progress=progress)
    for name, (nll, words) in scored.items():
        figures[f"perplexity given {name} mode and item"] = perplexity(nll, words)
        figures["word tokens"] = words
    return figures
