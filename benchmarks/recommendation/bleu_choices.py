"""How much of a reply's SacreBLEU is the measure: the same replies scored under several choices.

    python -m benchmarks.recommendation.bleu_choices --data inspired --split valid PREDICTIONS

PREDICTIONS is a `predictions.jsonl` with replies; without one, only the constant reply is scored,
which needs no model. Prints the number of replies and SacreBLEU under each choice. Nothing is
compared across choices but the choices themselves.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import RECOMMENDER, Dialogue, Turn
from crs_fast.crs.evaluation.evaluate import log_test
from crs_fast.crs.evaluation.metrics import sacre_bleu, tokens
from crs_fast.crs.evaluation.predictions import (
    PLACEHOLDER,
    Prediction,
    blank_predictions,
    read_predictions,
)

WORDS = 6
Pair = tuple[str, list[str]]  # a reply and its references


def corpus_bleu(
    pairs: Sequence[Pair],
    *,
    one_token: bool = True,
    tokenize: str = "13a",
    brevity: bool = True,
) -> float:
    """SacreBLEU with every reference of a reply.

    Args:
        one_token: write a placeholder so that it stays one token; 13a splits it into three.
        tokenize: see `sacrebleu`.
        brevity: with the penalty for replies that are shorter than the references.
    """
    import sacrebleu

    def written(text: str) -> str:
        return placeholder_as_one_token(text) if one_token else text

    most = max(len(references) for _, references in pairs)
    streams = [[written(r[n]) if n < len(r) else None for _, r in pairs] for n in range(most)]
    replies = [written(reply) for reply, _ in pairs]
    bleu = sacrebleu.corpus_bleu(replies, streams, tokenize=tokenize, force=True)
    return float(bleu.score if brevity else bleu.score / (bleu.bp or 1))


def placeholder_as_one_token(text: str) -> str:
    """A text whose placeholders 13a does not split."""
    return text.replace(PLACEHOLDER, " ⟨movie⟩ ")


def messages(turn: Turn) -> list[str]:
    """The messages that were joined into a turn, with placeholders."""
    text, cuts = turn.with_placeholder(PLACEHOLDER), []
    for n in range(1, len(turn.breaks) + 1):
        cuts.append(len(turn.before(n).with_placeholder(PLACEHOLDER)))
    parts = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [part for part in parts if part]


def pairs_of(predictions: Sequence[Prediction]) -> list[Pair]:
    return [(p.reply or "", [p.gold_reply]) for p in predictions if p.reply is not None]


def choices(
    predictions: Sequence[Prediction], dialogues: Sequence[Dialogue]
) -> dict[str, tuple[int, float]]:
    """The number of replies and SacreBLEU under each choice, ours first."""

    def standard(some: Sequence[Prediction]) -> tuple[int, float]:
        pairs = pairs_of(some)
        if not pairs:
            return 0, 0.0
        return len(pairs), sacre_bleu([a for a, _ in pairs], [b[0] for _, b in pairs])

    def changed(change: Callable[[str], str]) -> list[Pair]:
        return [(change(a), [change(b[0])]) for a, b in everything]

    def spaced(text: str) -> str:
        return " ".join(tokens(text))

    everything = pairs_of(predictions)
    n = len(everything)
    several = [
        (a, [b[0], *(said if len(said := messages(turn)) > 1 else [])])
        for (a, b), turn in zip(
            everything,
            (dialogues[p.dialogue].turns[p.turn] for p in predictions if p.reply is not None),
            strict=True,
        )
    ]
    ours = standard(predictions)
    return {
        "ours: one placeholder token, 13a, cased, every turn, one reference": ours,
        "the placeholder as three tokens": (n, corpus_bleu(everything, one_token=False)),
        "the placeholder left out": (n, corpus_bleu(changed(lambda t: t.replace(PLACEHOLDER, "")))),
        "lower case": (
            n,
            sacre_bleu([a.lower() for a, _ in everything], [b[0].lower() for _, b in everything]),
        ),
        "lower case, tokens of Distinct-n, no further tokens": (
            n,
            corpus_bleu(changed(spaced), one_token=False, tokenize="none"),
        ),
        "without the penalty for short replies": (n, corpus_bleu(everything, brevity=False)),
        "turns that recommend": standard([p for p in predictions if p.gold_items]),
        "turns that don't": standard([p for p in predictions if not p.gold_items]),
        "every message of the turn a reference too": (n, corpus_bleu(several)),
    }  # fmt: skip


def constant(predictions: Sequence[Prediction], train: Sequence[Dialogue]) -> list[Prediction]:
    """The commonest training reply of each kind, with and without items, at every turn. Replies of
    fewer than `WORDS` tokens don't count: the penalty for short replies would hide all else."""
    counts = {True: Counter[str](), False: Counter[str]()}
    for dialogue in train:
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER:
                reply = turn.with_placeholder(PLACEHOLDER)
                counts[bool(turn.mentions)][reply] += len(tokens(reply)) >= WORDS
    best = {kind: max(counter, key=counter.__getitem__) for kind, counter in counts.items()}
    return [replace(p, reply=best[bool(p.gold_items)]) for p in predictions]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("predictions", nargs="?", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="valid", choices=("valid", "test"))
    args = parser.parse_args(argv)
    dataset = load_dataset(args.data)
    dialogues = dataset.splits[args.split]
    columns = {}
    if args.predictions is not None:
        if args.split == "test":
            log_test(args.predictions.parent, arm="bleu_choices")
        columns["replies"] = read_predictions(args.predictions, dialogues, dataset.items)
    blank = columns.get("replies") or blank_predictions(dialogues)
    columns["constant reply"] = constant(blank, dataset.splits["train"])
    scored = {name: choices(predictions, dialogues) for name, predictions in columns.items()}
    print(f"| SacreBLEU | n | {' | '.join(scored)} |\n|---|---|{'---|' * len(scored)}")
    for choice, (n, _) in scored["constant reply"].items():
        print(f"| {choice} | {n} | {' | '.join(f'{s[choice][1]:.2f}' for s in scored.values())} |")


if __name__ == "__main__":
    main()
