"""The tables and plots of an experiment, computed from its predictions alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recommendation.arms import ARMS, Arm, FusedArm, choose_arms
from benchmarks.recommendation.arms.fused import RULES
from benchmarks.recommendation.arms.setting import ORACLE
from crs_fast._files import replacing, write_text
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.corrected_labels import label_figures
from crs_fast.crs.evaluation.metrics import ranking_metrics
from crs_fast.crs.evaluation.predictions import Prediction, read_predictions
from crs_fast.crs.evaluation.reply_samples import replies_markdown
from crs_fast.crs.evaluation.report import (
    CAVEATS,
    TITLES,
    difference_table,
    intent_table,
    markdown_table,
    recommendation_table,
)
from crs_fast.crs.evaluation.score import (
    BY_FILM,
    PROTOCOLS,
    Targets,
    intent_figures,
    mode_figures,
    named_items,
    paired_runs,
    protocol_targets,
    recall_intervals,
    same_films,
    text_figures,
)
from crs_fast.crs.evaluation.sigir_standard import standard_figures
from crs_fast.crs.evaluation.standard_report import labels_markdown, standard_markdown

BASE = "gcrs"  # the method that the others are compared with
FILTERED = f"{BASE} (named items filtered)"
Runs = dict[str, list[list[Prediction]]]


def read_runs(out: Path, dataset: CrsDataset, split: str = "test") -> Runs:
    """For each method, one list of predictions per seed, on a split's dialogues. Each decoding of a
    method has its own name here, and an oracle says so in its name."""
    runs: Runs = {}
    for arm in _arms(out):
        name, mark = arm.name, f" ({ORACLE})" if arm.about.startswith(ORACLE) else ""
        for done in sorted((out / "runs" / name).glob("seed*/done.json")):
            for file in sorted(done.parent.glob("*.jsonl")):
                decoding = "" if file.stem == "predictions" else f" ({file.stem})"
                predictions = read_predictions(file, dataset.splits[split], dataset.items)
                runs.setdefault(name + decoding + mark, []).append(predictions)
    if BASE in runs:
        runs[FILTERED] = [
            [replace(p, ranking=_new(p), mode=None, reply=None) for p in run] for run in runs[BASE]
        ]
    return runs


def _arms(out: Path) -> list[Arm | FusedArm]:
    """The methods with a finished run, in the order of `ARMS`."""
    names = {done.parents[1].name for done in (out / "runs").glob("*/seed*/done.json")}
    arms, order = choose_arms(",".join(names)) if names else [], [*ARMS, *RULES]
    return sorted(arms, key=lambda arm: [order.index(part) for part in arm.name.split("+")])


def _new(p: Prediction) -> list[str]:
    return [item for item in p.without_named() if item not in p.named]


def write_results(
    out: Path, dataset: CrsDataset, held: Collection[str] = (), split: str = "test"
) -> dict[str, Any]:
    """Write results.json, results.md and the plots; returns the contents of results.json.

    Args:
        held: ids of held-out items; their targets get tables of their own.
        split: the split that was answered.
    """
    runs, seen = read_runs(out, dataset, split), named_items(dataset.splits["train"])
    films = same_films(dataset.items)
    protocols = {name: (name, seen) for name in PROTOCOLS}
    if held:
        rest = {item.item_id for item in dataset.items} - set(held)
        protocols |= {
            "held out": ("unseen", rest),
            "held out, new-only": ("unseen, new-only", rest),
        }
    figures: dict[str, Any] = {"data": dataset.name, "split": split}
    figures |= {"recommendation": {}, "differences": {}}
    chooses = any(p.mode is not None for run in runs.values() for p in run[0])
    for protocol, (rule, known) in protocols.items():
        if protocol == "free" and not chooses:
            continue
        targets = {
            name: [protocol_targets(p, rule, known) for p in predictions]
            for name, predictions in runs.items()
            if _belongs(name, protocol)
        }
        figures["recommendation"][protocol] = {n: seed_figures(t) for n, t in targets.items()}
        for name in targets if films else ():
            by_film = [protocol_targets(p, rule, known, films) for p in runs[name]]
            figures["recommendation"][protocol][name][BY_FILM] = seed_figures(by_film)
        if len(targets) > 1 and BASE in targets and any(t.keys for t in targets[BASE]):
            figures["differences"][protocol] = {
                f"{BASE} − {name}": paired_runs(targets[BASE], other)
                for name, other in targets.items()
                if name != BASE
            }
    figures["mode"] = {
        name: mode_figures(r[0]) for name, r in runs.items() if chooses and name != FILTERED
    }
    for kind, compute in {"intents": intent_figures, "text": text_figures}.items():
        figures[kind] = {name: values for name, r in runs.items() if (values := compute(r[0]))}
    first = {name: r[0] for name, r in runs.items() if name != FILTERED}
    figures["standard"] = standard_figures(dataset, split, first)
    figures["labels"] = label_figures(dataset, split, first[BASE], BASE) if BASE in first else {}
    figures["runs"] = {
        str(done.parent.relative_to(out / "runs")): json.loads(done.read_text())
        for done in sorted((out / "runs").glob("*/seed*/done.json"))
    }
    write_text(out / "results.json", json.dumps(figures, indent=1) + "\n")
    write_text(out / "results.md", results_markdown(figures) + _replies(dataset, split, first))
    _plot(out / "results.png", figures["recommendation"])
    return figures


def _replies(dataset: CrsDataset, split: str, runs: dict[str, list[Prediction]]) -> str:
    """Some replies of the method that others are compared with, or else of the first that wrote
    any."""
    names = [name for name, run in runs.items() if any(p.reply is not None for p in run)]
    if not names:
        return ""
    name = BASE if BASE in names else names[0]
    return "\n" + replies_markdown(
        dataset, split, runs[name], heading=f"Replies as they are: {name}, first seed"
    )


def _belongs(name: str, protocol: str) -> bool:
    # Where named items are filtered out anyway, the filtered variant equals the plain one. It also
    # has no mode, so that it has no free mode.
    return protocol in ("paper", "unseen", "held out") or name != FILTERED


def seed_figures(runs: Sequence[Targets]) -> dict[str, Any]:
    """The figures averaged over seeds, with `seeds` and, if there are several, `<figure> sd`. The
    95 % intervals are over dialogues and not over seeds; in them a target counts by the share of
    runs that hit it."""
    if not runs[0].keys:
        return {"n": 0, "seeds": len(runs)}
    figures = [ranking_metrics(run.ranks).to_dict() for run in runs]
    out = {**figures[0], **recall_intervals(runs), "seeds": len(runs)}
    for name in figures[0] if len(runs) > 1 else ():
        if "@" in name:
            values = [f[name] for f in figures]
            out[name] = float(np.mean(values))
            out[f"{name} sd"] = float(np.std(values, ddof=1))
    return out


def results_markdown(figures: dict[str, Any]) -> str:
    """All tables of results.md."""
    parts = [f"## {figures['data']}, {figures['split']}\n"]
    if figures["data"] in CAVEATS:
        parts.append(CAVEATS[figures["data"]])
    for protocol, methods in figures["recommendation"].items():
        parts += [f"### {TITLES[protocol]}\n", recommendation_table(methods)]
        if protocol in figures["differences"]:
            parts += [
                "Paired over the same targets, points [95 %, bootstrap over dialogues]:\n",
                difference_table(figures["differences"][protocol]),
            ]
    if figures["mode"]:
        names = ("accuracy", "rec base rate", "rec precision", "rec recall", "rec f1",
                 "item precision")  # fmt: skip
        counts = ("chat -> chat", "chat -> rec", "rec -> chat", "rec -> rec")
        rows = [["mode, %", *names, *(f"{pair}, turns" for pair in counts)]]
        for method, mode in figures["mode"].items():
            shares = (f"{100 * mode[name]:.1f}" for name in names)
            rows.append([method, *shares, *(str(mode[pair]) for pair in counts)])
        parts += [
            "### The model's own mode, all recommender turns, first seed\n",
            "What chooses no mode recommends at every turn. Gold -> chosen; item precision: turns "
            "whose top item is a gold one, of those at which it recommends.\n",
            markdown_table(rows),
        ]
    if figures["intents"]:
        parts += [
            "### The model's own intent, turns that have a label, first seed\n",
            intent_table(figures["intents"]),
        ]
    if figures["text"]:
        columns = sorted({name for text in figures["text"].values() for name in text})
        rows = [["replies", *columns]]
        for method, text in figures["text"].items():
            rows.append([method, *(f"{text[c]:.4g}" if c in text else "–" for c in columns)])
        parts += [
            "### Replies (gold mode, own top item), first seed\n",
            "Perplexity is of the gold replies' words; given gold mode and item it tells the arms "
            "that are given much from those that are given little, so compare arms by their own.\n",
            markdown_table(rows),
        ]
    for tables in (
        standard_markdown(figures["data"], figures["split"], figures["standard"]),
        labels_markdown(figures["labels"]),
    ):
        parts += [f"First seed.\n\n{tables}"] if tables else []
    rows = [["run", "tokens read", "steps", "learning rate", "last loss", "train s", "answer s"]]
    for name, run in figures["runs"].items():
        trained = [str(run.get(key, "–")) for key in ("tokens", "steps", "learning_rate")]
        loss = f"{run['loss']:.3f}" if "loss" in run else "–"
        rows.append([name, *trained, loss, *(f"{s:.0f}" for s in run["seconds"].values())])
    parts += ["### Runs\n", markdown_table(rows)]
    return "\n".join(parts)


def _plot(path: Path, recommendation: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Plot R@1 and R@10 with intervals of every method that is no oracle, in the paper's protocol
    and on new items."""
    from matplotlib.figure import Figure

    shown = [p for p in ("paper", "new-only") if recommendation.get(p)]
    if not shown:
        return
    names = [name for name in recommendation[shown[0]] if ORACLE not in name]
    figure = Figure(figsize=(10, 1.2 + 0.35 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2 * len(shown), squeeze=False, sharey=True)[0]
    for panel, (protocol, k) in zip(panels, [(p, k) for p in shown for k in (1, 10)], strict=True):
        methods = recommendation[protocol]
        for y, name in enumerate(names):
            if methods.get(name, {}).get("n"):
                value, (low, high) = (
                    methods[name][f"recall@{k}"],
                    methods[name][f"recall@{k} interval"],
                )
                panel.plot([100 * low, 100 * high], [y, y], color="tab:blue")
                panel.plot([100 * value], [y], "o", color="tab:blue")
        panel.set(title=f"{protocol}, R@{k}, %", yticks=range(len(names)), yticklabels=names)
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
