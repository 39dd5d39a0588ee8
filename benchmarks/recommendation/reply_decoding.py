"""Replies written in several ways by a model that an experiment has kept, to choose on validation.

    python -m benchmarks.recommendation.reply_decoding --out EXPERIMENT [--method gcrs]
        [--decoding greedy greedy+chosen sample:1:0.9 consensus:5:0.5+chosen]

EXPERIMENT is the folder of a run with `--keep-models` and one learning rate. Nothing is trained.
Modes and rankings stay those of its predictions.jsonl, so no recall can change.

    greedy              the likeliest token
    sample:T[:P]        drawn at temperature T from the likeliest words that have P together
    consensus:N:T[:P]   of N such replies the one with the best mean BLEU against the others
                        (minimum Bayes risk, Kumar & Byrne 2004); where the turn recommends, first
                        of those that name the chosen item
    ...+chosen          a reply that recommends may name no item but the chosen one

Prints SacreBLEU with its difference to greedy [95 %, bootstrap over dialogues], the penalty for
short replies, Distinct-2 and lengths, and writes this table to EXPERIMENT/decodings.md. The replies
are in EXPERIMENT/decodings/, for `crs-fast score` and `bleu_choices`; what is there is not written
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recommendation.bleu_choices import placeholder_as_one_token
from benchmarks.recommendation.joined import kept_model, read_plan
from benchmarks.recommendation.reproduce import plan_data
from crs_fast._files import write_text
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.evaluation.evaluate import log_test
from crs_fast.crs.evaluation.metrics import tokens
from crs_fast.crs.evaluation.predict import write_replies
from crs_fast.crs.evaluation.predictions import Prediction, read_predictions, write_predictions
from crs_fast.crs.evaluation.score import text_figures
from crs_fast.crs.sampling import GREEDY, Sampling

DECODINGS = ("greedy", "greedy+chosen", "sample:0.5+chosen", "consensus:5:0.5+chosen")


@dataclass(frozen=True, slots=True)
class Decoding:
    """A way to write replies: of `samples` replies the one that agrees best with the others."""

    name: str
    sampling: Sampling = GREEDY
    samples: int = 1
    only_chosen: bool = False

    @classmethod
    def parse(cls, name: str) -> Decoding:
        """
        Raises:
            ValueError: it is no decoding.
        """
        rule = name.removesuffix("+chosen")
        only_chosen, (kind, *numbers) = rule != name, rule.split(":")
        try:
            if kind == "greedy" and not numbers:
                return cls(name, only_chosen=only_chosen)
            if kind == "sample" and 1 <= len(numbers) <= 2:
                return cls(name, Sampling(True, *map(float, numbers)), only_chosen=only_chosen)
            if kind == "consensus" and 2 <= len(numbers) <= 3 and int(numbers[0]) > 2:
                sampling = Sampling(True, *map(float, numbers[1:]))
                return cls(name, sampling, int(numbers[0]), only_chosen)
        except ValueError as error:
            raise ValueError(f"reply_decoding: {name!r} is no decoding ({error})") from None
        raise ValueError(
            "reply_decoding: a decoding must be greedy, sample:T[:P] or consensus:N:T[:P] with N "
            f"above 2, with +chosen or without (got {name!r})"
        )


def written(
    bundle: Bundle,
    dialogues: Sequence[Dialogue],
    predictions: Sequence[Prediction],
    decoding: Decoding,
    max_new_tokens: int,
) -> list[Prediction]:
    """The predictions with the replies of a decoding. Sample k is drawn with seed k."""
    drawn = []
    for seed in range(decoding.samples):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            replies = write_replies(
                bundle,
                dialogues,
                predictions,
                sampling=decoding.sampling,
                only_chosen=decoding.only_chosen,
                max_new_tokens=max_new_tokens,
                progress=False,
            )
        drawn.append(replies)
    return [consensus(of_turn) for of_turn in zip(*drawn, strict=True)]


def consensus(answers: Sequence[Prediction]) -> Prediction:
    """The answer whose reply has the best mean BLEU against the other replies; if the turn
    recommends, first of those whose reply names the top item."""
    if len(answers) == 1:
        return answers[0]
    top = answers[0].ranking[0] if answers[0].gold_items and answers[0].ranking else None
    naming = [top in answer.reply_items for answer in answers]
    agreement = [
        sum(_sentence_bleu(a.reply, b.reply) for b in answers if b is not a) for a in answers
    ]
    best = max(range(len(answers)), key=lambda n: (naming[n], agreement[n]))
    return answers[best]


def _sentence_bleu(reply: str | None, reference: str | None) -> float:
    """BLEU-4 of one reply, with one added to each count (Lin & Och 2004)."""
    ours, gold = tokens(reply or ""), tokens(reference or "")
    if not ours or not gold:
        return 0.0
    logs = 0.0
    for n in (1, 2, 3, 4):
        left = [tuple(gold[i : i + n]) for i in range(len(gold) - n + 1)]
        total, matches = max(len(ours) - n + 1, 0), 0
        for i in range(total):
            gram = tuple(ours[i : i + n])
            if gram in left:
                left.remove(gram)
                matches += 1
        logs += np.log((matches + 1) / (total + 1)) / 4
    return float(np.exp(logs + min(0.0, 1 - len(gold) / len(ours))))


def bleu_counts(predictions: Sequence[Prediction]) -> np.ndarray:
    """What SacreBLEU counts of each reply, [n, 10]: matches and n-grams of 1 to 4 tokens, and the
    lengths of the reply and its reference."""
    import sacrebleu

    measure = sacrebleu.BLEU(force=True)
    rows = []
    for p in predictions:
        texts = map(placeholder_as_one_token, (p.reply or "", p.gold_reply))
        score = measure.corpus_score([next(texts)], [[next(texts)]])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=np.float64)


def bleu_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BLEU in [0, 100] and the penalty for short replies of sums of such counts, [..., 10]."""
    matches, totals = counts[..., :4], counts[..., 4:8]
    with np.errstate(divide="ignore"):
        precision = np.exp(np.log(matches / np.maximum(totals, 1)).mean(-1))
    penalty = np.exp(np.minimum(0, 1 - counts[..., 9] / np.maximum(counts[..., 8], 1)))
    return 100 * precision * penalty, penalty


def gain_interval(
    ours: np.ndarray, others: np.ndarray, dialogues: Sequence[int], samples: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of the difference of two BLEUs of the same turns, over dialogues."""
    groups = np.unique(np.asarray(dialogues), return_inverse=True)[1]
    sums = np.zeros((2, groups.max() + 1, ours.shape[1]))
    for side, counts in enumerate((ours, others)):
        np.add.at(sums[side], groups, counts)
    generator = np.random.default_rng(0)
    weights = generator.multinomial(
        sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=samples
    )  # [samples, dialogues]
    first, second = (bleu_of(weights @ side)[0] for side in sums)
    low, high = np.quantile(first - second, [0.025, 0.975])
    return float(low), float(high)


def row(decoding: Decoding, predictions: Sequence[Prediction], base: np.ndarray, s: float) -> str:
    """A line of the table."""
    counts, text = bleu_counts(predictions), text_figures(predictions)
    (bleu, penalty), base_bleu = bleu_of(counts.sum(0)), bleu_of(base.sum(0))[0]
    low, high = gain_interval(counts, base, [p.dialogue for p in predictions])
    named = text.get("replies that name the top item")
    ours, gold = (counts[:, at].mean() for at in (8, 9))
    cells: list[Any] = [
        decoding.name,
        len(predictions),
        f"{bleu:.2f}",
        f"{bleu - base_bleu:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{penalty:.2f}",
        f"{bleu / penalty:.2f}",
        f"{text['distinct-2']:.3f}",
        f"{ours:.1f} / {gold:.1f}",
        "–" if named is None else f"{100 * named:.0f} %",
        f"{s:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "decoding",
    "replies",
    "SacreBLEU",
    "− greedy",
    "penalty",
    "without it",
    "Distinct-2",
    "tokens a reply / gold",
    "name the chosen item",
    "s",
)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="gcrs")
    parser.add_argument("--decoding", nargs="+", default=DECODINGS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    decodings = [Decoding.parse(name) for name in args.decoding]
    plan = read_plan(args.out)
    dataset, held = plan_data(plan)
    dialogues = dataset.splits[plan.split][: plan.limit]
    file = args.out / "runs" / args.method / "seed0" / "predictions.jsonl"
    predictions = read_predictions(file, dialogues, dataset.items)
    folder = args.out / "decodings" / args.method
    folder.mkdir(parents=True, exist_ok=True)

    @cache
    def bundle() -> Bundle:
        return kept_model(plan, dataset, held, args.out, args.method)

    lines, base = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"], None
    print("\n".join(lines))
    for decoding in [Decoding("greedy"), *(d for d in decodings if d.name != "greedy")]:
        file, start = folder / f"{decoding.name.replace(':', '_')}.jsonl", time.perf_counter()
        if not file.is_file():
            if plan.split == "test":
                log_test(args.out, arm=f"{args.method}, replies by {decoding.name}")
            answers = written(bundle(), dialogues, predictions, decoding, plan.max_new_tokens)
            write_predictions(file, answers)
        answers = read_predictions(file, dialogues, dataset.items)
        base = bleu_counts(answers) if base is None else base
        lines.append(row(decoding, answers, base, time.perf_counter() - start))
        print(lines[-1], flush=True)
    heading = f"## {dataset.name}, {plan.split}: replies of {args.method}, first seed\n"
    write_text(args.out / "decodings.md", "\n".join([heading, *lines]) + "\n")


if __name__ == "__main__":
    main()
