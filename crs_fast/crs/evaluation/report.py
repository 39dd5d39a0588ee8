"""Writes evaluation figures as markdown tables."""

from __future__ import annotations

from typing import Any

from crs_fast.crs.evaluation.score import BY_FILM

TITLES = {
    "paper": "Mode forced to the gold one (the paper's protocol)",
    "new-only": "New-only: targets not named before, named items filtered out",
    "free": "Free mode: the model chooses its mode, a wrong CHAT is a miss; what chooses none "
    "recommends always",
    "unseen": "Targets that no training dialogue names",
    "held out": "Targets held out on purpose",
    "held out, new-only": "Targets held out on purpose, new-only",
    "unseen, new-only": "Targets that no training dialogue names, new-only",
}
# A caveat that must stand beside every figure of a data set, by the data set's name.
CAVEATS = {
    "inspired": "INSPIRED: about 65 of the 292 test targets are false tags (`Sir (2018)` from "
    '"Yeah Sir!"), so recall ends at about 78 %, and so few targets mean an interval of ±3.6 '
    "points at R@1 11 %: rank no methods by this data set alone.\n"
}
COLUMNS = ("R@1", "R@5", "R@10", "R@20", "R@50", "N@10", "M@10")
METRIC = {"R": "recall", "N": "ndcg", "M": "mrr"}


def scores_markdown(
    dataset: str,
    split: str,
    recommendation: dict[str, dict[str, dict[str, Any]]],
    mode: dict[str, Any],
    text: dict[str, Any],
    intents: dict[str, Any] | None = None,
) -> str:
    """All tables of one system's figures (see `crs_fast.crs.evaluation.score`)."""
    parts = [f"## {dataset}, {split}\n"]
    if dataset in CAVEATS:
        parts.append(CAVEATS[dataset])
    for protocol, methods in recommendation.items():
        parts += [f"### {TITLES[protocol]}\n", recommendation_table(methods)]
    if mode:
        parts += ["### Mode\n", mode_table(mode)]
    if intents:
        parts += ["### Intent, of the turns that have a label\n", intent_table({"": intents})]
    if text:
        parts += ["### Text\n", text_table(text)]
    return "\n".join(parts)


def recommendation_table(methods: dict[str, dict[str, Any]]) -> str:
    """One row per method, in per cent. A cell holds the mean ± standard deviation over seeds if
    there are several, else the number of hits in brackets; R@1 and R@10 also have their 95 %
    interval (bootstrap over dialogues). If the catalogue has a film twice, a second row counts by
    film."""
    seeds = ["seeds"] if any("seeds" in figures for figures in methods.values()) else []
    rows = [["%", "n", *seeds, *COLUMNS]]
    for name, figures in methods.items():
        rows.append([name, *_cells(figures, seeds)])
        if BY_FILM in figures:
            rows.append([f"{name}, {BY_FILM}", *_cells(figures[BY_FILM], seeds)])
    return markdown_table(rows)


def _cells(figures: dict[str, Any], seeds: list[str]) -> list[str]:
    counts = [str(figures[name]) for name in ("n", *seeds)]
    return counts + [_cell(figures, column) if figures["n"] else "–" for column in COLUMNS]


def _cell(figures: dict[str, Any], column: str) -> str:
    letter, k = column.split("@")
    key = f"{METRIC[letter]}@{k}"
    text = f"{100 * figures[key]:.2f}"
    if f"{key} sd" in figures:
        text += f" ± {100 * figures[f'{key} sd']:.2f}"
    elif letter == "R":
        text += f" ({figures[f'hits@{k}']})"
    if column in ("R@1", "R@10"):
        low, high = figures[f"{key} interval"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def mode_table(mode: dict[str, Any]) -> str:
    """The gold mode against the chosen mode, over all recommender turns."""
    table = markdown_table(
        [
            ["gold \\ chosen", "CHAT", "REC"],
            ["CHAT", str(mode["chat -> chat"]), str(mode["chat -> rec"])],
            ["REC", str(mode["rec -> chat"]), str(mode["rec -> rec"])],
        ]
    )
    return table + (
        f"\nAccuracy {100 * mode['accuracy']:.1f} % of {mode['n']} turns "
        f"(always REC: {100 * mode['rec base rate']:.1f} %, "
        f"always CHAT: {100 - 100 * mode['rec base rate']:.1f} %); "
        f"F1 of REC: {100 * mode['rec f1']:.1f} %; "
        f"item precision where the model recommends: {100 * mode['item precision']:.1f} %.\n"
    )


def intent_table(methods: dict[str, dict[str, Any]]) -> str:
    """One row per method (see `intent_figures`); shares are in per cent."""
    rows = [["intent, %", "n", "intents", "accuracy", "macro f1", "most frequent"]]
    for name, figures in methods.items():
        counts, shares = rows[0][1:3], rows[0][3:]
        cells = [str(figures[c]) for c in counts] + [f"{100 * figures[s]:.1f}" for s in shares]
        rows.append([name, *cells])
    return markdown_table(rows)


def text_table(text: dict[str, Any]) -> str:
    """Perplexities, BLEU, Distinct-n and invalid items of the replies."""
    rows = [["figure", "value"]]
    rows += [[name, f"{v:.4g}" if isinstance(v, float) else str(v)] for name, v in text.items()]
    return markdown_table(rows)


def difference_table(differences: dict[str, dict[str, Any]]) -> str:
    """One row per protocol or pair, with paired differences in points (see `paired_difference`)."""
    rows = [["", "n", "R@1 difference", "ratio", "R@10 difference", "ratio"]]
    for name, values in differences.items():
        row = [name, str(values["n"])]
        for k in (1, 10) if values["n"] else ():
            low, high = (100 * end for end in values[f"difference@{k} interval"])
            ratio = values[f"ratio@{k}"]
            row.append(f"{100 * values[f'difference@{k}']:+.2f} [{low:+.2f}, {high:+.2f}]")
            row.append("–" if ratio is None else f"{ratio:.2f}")
        rows.append(row + ["–"] * (len(rows[0]) - len(row)))
    return markdown_table(rows)


def markdown_table(rows: list[list[str]]) -> str:
    """A markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"
