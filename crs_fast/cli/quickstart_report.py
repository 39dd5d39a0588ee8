"""What `crs-fast quickstart` shows of an evaluation: figures, a picture and a conversation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crs_fast.crs.data.dialogue import RECOMMENDER, CrsDataset

if TYPE_CHECKING:
    from crs_fast.crs.evaluation.evaluate import Evaluation
    from crs_fast.crs.evaluation.predictions import Prediction

# The methods of the summary and the picture, in the order of an evaluation's tables.
METHODS = ("crs_fast", "popularity", "copy", "copy, then popularity", "BM25", "MiniLM cosine")
CUTOFFS = (1, 5, 10, 20, 50)
TOP = 10  # a conversation is shown in which the gold film is among so many
BAR = 40  # characters of a bar that stands for 100 %


def headline(evaluation: Evaluation, free_invalid: int) -> dict[str, Any]:
    """The figures of the summary, by the paper's protocol, and new-only beside them; `free_invalid`
    are invalid items of replies that the evaluation did not count."""
    paper, new = evaluation.recommendation["paper"], evaluation.recommendation["new-only"]
    return {
        "targets": paper["crs_fast"]["n"],
        "recall@1": {name: paper[name]["recall@1"] for name in METHODS},
        "recall@10": {name: paper[name]["recall@10"] for name in METHODS},
        "recall@10 interval": paper["crs_fast"]["recall@10 interval"],
        "new_only_recall@10": {name: new[name]["recall@10"] for name in METHODS},
        "mode_accuracy": evaluation.mode["accuracy"],
        "turns": evaluation.mode["n"],
        "invalid_items": evaluation.text["invalid items"] + free_invalid,
    }


def summary_lines(summary: dict[str, Any], folder: Path) -> list[str]:
    """The end of the run in at most 25 lines: figures, then where everything is."""
    lines = []
    if "recall@10" in summary:
        low, high = (100 * end for end in summary["recall@10 interval"])
        recall = summary["recall@10"]
        lines = [f"recall@10 on {summary['targets']} held-out targets of SIMULATED dialogues"]
        for name, share in sorted(recall.items(), key=lambda pair: -pair[1]):
            bar = "█" * round(BAR * share)
            lines.append(f"  {name:<22} {100 * share:5.1f} %  {bar}")
        times = recall["crs_fast"] / recall["popularity"] if recall["popularity"] else math.inf
        lines += [
            f"  crs_fast: {times:.1f} times popularity; 95 % interval {low:.0f} to {high:.0f} %",
            f"recommend or chat: decided as in the data in {100 * summary['mode_accuracy']:.0f} % "
            f"of {summary['turns']} turns",
            f"items named that do not exist: {summary['invalid_items']}",
        ]
    if "constraint" in summary:
        constraint = summary["constraint"]
        lines.append(
            f"constrained search: {constraint['speedup']['tree']:.1f} times as fast as with a "
            f"constraint in Python, that of a step {constraint['mask_speedup']:.0f} times"
        )
    lines += [f"left out {failure}" for failure in summary["failed"]]
    files = {
        "recall.png": "the picture: recall@1 to @50 beside the baselines",
        "evaluation/evaluation.md": "all tables (.json beside it, predictions.jsonl too)",
        "conversation.txt": "the conversation above",
        "summary.json": "the figures above, machine-readable",
        "model/training/loss.png": "the loss",
    }
    lines.append(f"saved in {folder.resolve()}:")
    lines += [f"  {name:<25} {what}" for name, what in files.items() if (folder / name).exists()]
    if (folder / "recall.png").exists():
        lines.append(f"look at   {(folder / 'recall.png').resolve()}")
    lines.append(f"talk to it: crs-fast chat --model {folder / 'model'}")
    return lines


def plot_recall(methods: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw recall@k of every method as a PNG."""
    from matplotlib.figure import Figure

    from crs_fast._files import replacing

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(CUTOFFS))
    for name in METHODS:
        shares = [100 * methods[name][f"recall@{k}"] for k in CUTOFFS]
        own = name == "crs_fast"
        axes.plot(
            places,
            shares,
            marker="o",
            label=name,
            linewidth=3 if own else 1.5,
            zorder=3 if own else 2,
        )
        if own:
            for place, share in zip(places, shares, strict=True):
                axes.annotate(
                    f"{share:.0f}", (place, share), xytext=(0, 7), textcoords="offset points"
                )
    axes.set_xticks(list(places), [f"@{k}" for k in CUTOFFS])
    axes.set_ylim(0, 100)
    axes.set(
        ylabel="recall, %", title=f"{methods['crs_fast']['n']} held-out targets, simulated data"
    )
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.legend(fontsize="small", loc="upper left")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def conversation(evaluation: Evaluation, dataset: CrsDataset) -> str:
    """A held-out dialogue with the model's answer and the gold film's rank below each recommender
    turn: the first dialogue in which a gold film is among the model's best, and how many are."""
    answers: dict[int, dict[int, Prediction]] = {}
    for prediction in evaluation.predictions:
        answers.setdefault(prediction.dialogue, {})[prediction.turn] = prediction
    good = [
        number
        for number, turns in answers.items()
        if any(0 < rank <= TOP for p in turns.values() for rank in gold_ranks(p))
    ]
    number = good[0] if good else 0
    titles = {item.item_id: item.display() for item in dataset.items}
    lines = [
        f"  The first of {len(good)} (out of {len(answers)}) with a gold film in the model's top "
        f"{TOP}; the model reads",
        "  the dialogue so far, and is told whether to recommend, but not what.",
    ]
    for at, turn in enumerate(dataset.splits["test"][number].turns):
        if turn.role != RECOMMENDER:
            lines.append(f"  seeker      {turn.text}")
            continue
        lines.append(f"  gold reply  {turn.text}")
        lines += _answer(answers[number][at], titles)
    return "\n".join(lines)


def gold_ranks(prediction: Prediction) -> list[int]:
    """Where each gold item stands in the ranking, 1 is best; 0 where it isn't in it."""
    ranking = prediction.ranking or []
    return [ranking.index(i) + 1 if i in ranking else 0 for i in prediction.gold_items]


def _answer(prediction: Prediction, titles: dict[str, str]) -> list[str]:
    from crs_fast.crs.evaluation.reply_samples import with_titles

    lines = [f"  model       {with_titles(prediction, titles)}"]
    if prediction.gold_items:
        best = [f"{n}. {titles[i]}" for n, i in enumerate((prediction.ranking or [])[:3], 1)]
        lines.append(f"              {'  '.join(best)}")
        for item_id, rank in zip(prediction.gold_items, gold_ranks(prediction), strict=True):
            place = f"rank {rank} of {len(titles)}" if rank else "not among the model's 50"
            lines.append(f"              gold item {titles[item_id]}: {place}")
    return lines
