"""Writes the figures of the public standard, beside the published rows, and those of corrected
labels as markdown tables."""

from __future__ import annotations

from typing import Any

from crs_fast.crs.evaluation.corrected_labels import KS as LABEL_KS
from crs_fast.crs.evaluation.corrected_labels import LABELS
from crs_fast.crs.evaluation.report import markdown_table, recommendation_table
from crs_fast.crs.evaluation.sigir_standard import ALL, FILTERED, FRESH, KS, PUBLISHED, PublishedRow

RECALLS = [f"R@{k}" for k in KS]
CLAIMED = " (claimed)"


def standard_markdown(dataset: str, split: str, figures: dict[str, Any]) -> str:
    """Two tables of `standard_figures`: all targets, and fresh targets with and without named items
    in the ranking. Published rows are added for ReDial's test split only. "" without figures."""
    if not figures:
        return ""
    published = PUBLISHED if (dataset, split) == ("redial", "test") else {}
    own = {variant: next(iter(figures[variant].values())) for variant in (ALL, FRESH)}
    counts = {v: f"{one['instances']} instances, {one['n']} targets" for v, one in own.items()}
    forms = ["SR", "RDL"] if "sr" in own[ALL] else []
    parts = ["### Public standard (SIGIR 2026): single messages, named items in the ranking\n"]
    if published:
        parts.append(
            f"Rows marked{CLAIMED} are the paper's own figures, not measured here; their naive "
            "row contradicts their counts (see `sigir_standard.py`).\n"
        )
    if stand_ins := {name: n for name, n in figures["stand-ins"].items() if n}:
        numbers = ", ".join(f"{name} {n}" for name, n in stand_ins.items())
        parts.append(
            "Instances inside a turn that have no ranking of their own, so that the ranking at the "
            f"beginning of the turn stands in, which has read less: {numbers}.\n"
        )
    rows = [[f"all: {counts[ALL]}", *RECALLS, *forms]]
    rows += [[name, *_cells(one, forms)] for name, one in figures[ALL].items()]
    rows += [
        [name + CLAIMED, *map(_share, row.all), *("–" for _ in forms)]
        for name, row in published.items()
    ]
    parts.append(markdown_table(rows))
    filtered = [f"{column}, filtered" for column in (*RECALLS, *forms)]
    rows = [[f"fresh: {counts[FRESH]}", *RECALLS, *forms, *filtered]]
    rows += [
        [name, *_cells(one, forms), *_cells(figures[FILTERED][name], forms)]
        for name, one in figures[FRESH].items()
    ]
    rows += [
        [name + CLAIMED, *_published_fresh(row, forms), *("–" for _ in filtered)]
        for name, row in published.items()
    ]
    parts += [
        markdown_table(rows),
        "Filtered: named items leave the ranking too, which helps by itself, so no published row "
        "is comparable with it. Brackets: hits, and 95 % by bootstrap over dialogues.\n",
    ]
    return "\n".join(parts)


def _cells(figures: dict[str, Any], forms: list[str]) -> list[str]:
    if not figures["n"]:
        return ["–"] * (len(KS) + len(forms))
    recalls = [
        f"{_share(figures[f'recall@{k}'])}{_count(figures, k)} "
        f"{_interval(figures[f'recall@{k} interval'])}"
        for k in KS
    ]
    return recalls + [
        f"{_share(figures[form.lower()])} {_interval(figures[f'{form.lower()} interval'])}"
        for form in forms
    ]


def _count(figures: dict[str, Any], k: int) -> str:
    return f" ({figures[f'hits@{k}']})" if f"hits@{k}" in figures else ""


def _published_fresh(row: PublishedRow, forms: list[str]) -> list[str]:
    claimed = {"SR": row.sr, "RDL": row.rdl}
    return [*map(_share, row.fresh), *map(_share, (claimed[form] for form in forms))]


def _share(value: float | None) -> str:
    """A share as the paper prints it: .043."""
    return "–" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _interval(ends: tuple[float, float]) -> str:
    return f"[{_share(ends[0])}, {_share(ends[1])}]"


def labels_markdown(figures: dict[str, Any]) -> str:
    """`label_figures` as tables: both label sets, and the causes of misses. "" without figures."""
    if not figures:
        return ""
    parts = ["### The same predictions by corrected labels\n"]
    for labels in LABELS:
        for protocol, methods in figures[labels].items():
            title = f"{labels[0].upper()}{labels[1:]} labels, {protocol}:\n"
            parts += [title, recommendation_table(methods)]
    kinds = {
        "kept": "targets that both label sets hold",
        "false": "false labels: original alone",
        "added": "labels that were missing: corrected alone",
    }
    parts.append(recommendation_table({text: figures[kind] for kind, text in kinds.items()}))
    rows = [["misses by original labels", "n", "false labels", "share, %"]]
    for k in LABEL_KS:
        missed = figures[f"misses@{k}"]
        share = "–"
        if missed["n"]:
            low, high = (100 * end for end in missed["share interval"])
            share = f"{100 * missed['share']:.1f} [{low:.1f}, {high:.1f}]"
        rows.append([f"at {k}", str(missed["n"]), str(missed["false"]), share])
    parts += [
        markdown_table(rows),
        f"Of the targets by corrected labels the catalogue lacks {figures['no item']}. Turns that "
        "recommend by corrected labels, but have no ranking (every target a miss): "
        f"{figures['unranked turns']}. People left false labels in, so the share of false labels "
        "is a lower bound.\n",
    ]
    return "\n".join(parts)
