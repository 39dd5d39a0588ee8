"""Evaluation figures as markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crs_fast.crs.evaluate import Evaluation

TITLES = {
    "paper": "Mode forced to the gold one (the paper's protocol)",
    "new-only": "New-only: targets not named before, named items filtered out",
    "free": "Free mode: the model chooses its mode, a wrong CHAT is a miss",
}
COLUMNS = ("R@1", "R@5", "R@10", "R@20", "R@50", "N@10", "M@10")
METRIC = {"R": "recall", "N": "ndcg", "M": "mrr"}


def evaluation_markdown(evaluation: Evaluation) -> str:
    """All tables of one evaluation."""
    parts = [f"## {evaluation.dataset}, {evaluation.split}\n"]
    for protocol, methods in evaluation.recommendation.items():
        parts.append(f"### {TITLES[protocol]}\n")
        parts.append(recommendation_table(methods))
    parts.append("### Mode\n")
    parts.append(mode_table(evaluation.mode))
    if evaluation.text:
        parts.append("### Text\n")
        parts.append(text_table(evaluation.text))
    return "\n".join(parts)


def recommendation_table(methods: dict[str, dict[str, Any]]) -> str:
    """One row a method, in per cent; hits in brackets, the 95 % interval (bootstrap over
    dialogues) behind R@1 and R@10."""
    rows = [["%", "n", *COLUMNS]]
    for name, figures in methods.items():
        row = [name, str(figures["n"])]
        for column in COLUMNS:
            letter, k = column.split("@")
            key = f"{METRIC[letter]}@{k}"
            row.append(_cell(figures, key) if figures["n"] else "–")
        rows.append(row)
    return _table(rows)


def _cell(figures: dict[str, Any], key: str) -> str:
    text = f"{100 * figures[key]:.2f}"
    kind, k = key.split("@")
    if kind != "recall":
        return text
    text += f" ({figures[f'hits@{k}']})"
    if k in ("1", "10"):
        low, high = figures[f"{key} interval"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def mode_table(mode: dict[str, Any]) -> str:
    """Gold against chosen mode over all recommender turns."""
    table = _table(
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
        f"item precision where the model recommends: {100 * mode['item precision']:.1f} %.\n"
    )


def text_table(text: dict[str, Any]) -> str:
    """Perplexities, BLEU, Distinct-n and invalid items of the replies."""
    rows = [["figure", "value"]]
    rows += [[name, f"{v:.4g}" if isinstance(v, float) else str(v)] for name, v in text.items()]
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"
