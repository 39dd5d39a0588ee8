"""Beams joined by candidates of another source, measured with a model that an experiment has kept.

    python -m benchmarks.recommendation.joined --out EXPERIMENT [--method gcrs] [--source text]
        [--rule mixture] [--share 0.1 0.3 0.5]

EXPERIMENT is the folder of a run with `--keep-models` and one learning rate; nothing is trained.
`--source` is "text" (`TextNeighbours`) or the `predictions.jsonl` of another method on the same
split, whose rankings have scores, such as the retrieval head's; that method then has rows of its
own. Prints hits among new targets that were held out on purpose (if the experiment has any), that
training never names, and that it names, and those of the paper's protocol: each with n, the
recall's 95 % interval, and the paired differences to the beams alone in points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path

from benchmarks.recommendation.arms import choose_arms
from benchmarks.recommendation.reproduce import Plan, make_setting, plan_data
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Turn
from crs_fast.crs.evaluation.evaluate import log_test
from crs_fast.crs.evaluation.metrics import bootstrap_interval, target_values
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import Prediction, read_predictions
from crs_fast.crs.evaluation.score import Targets, named_items, paired_runs, protocol_targets
from crs_fast.crs.joined_beams import RULES, JoinedBeams, Scored, Source
from crs_fast.crs.text_neighbours import TextNeighbours
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import SidConfig

KS = (1, 10, 50)


def read_plan(out: Path) -> Plan:
    """The plan of the experiment in a folder."""
    config = json.loads((out / "config.json").read_text())
    values = {field.name: config[field.name] for field in fields(Plan) if field.name in config}
    values |= {name: tuple(values[name]) for name in ("arms", "learning_rates")}
    signals = {"signals": tuple(values["sids"]["signals"])}
    return Plan(
        **{
            **values,
            "sids": SidConfig(**(values["sids"] | signals)),
            "training": TrainConfig(**values["training"]),
        }
    )


def kept_model(
    plan: Plan, dataset: CrsDataset, held: frozenset[str], out: Path, method: str
) -> Bundle:
    """The trained system of a method's seed 0."""
    (arm,) = choose_arms(method)
    rate = plan.learning_rates[0]
    config = replace(plan.training, learning_rate=rate, max_tokens=plan.tokens)
    folder = out / "runs" / arm.name / "seed0"
    if not any(folder.rglob("checkpoint-*")):
        raise ValueError(f"joined: {folder} must hold a kept model (got no checkpoint)")
    bundle = arm.fit(make_setting(plan, dataset, held, out), folder, config).bundle
    if bundle is None:
        raise ValueError(f"joined: method must be generative (got {method!r})")
    return bundle


def source_of(predictions: Sequence[Prediction], dialogues: Sequence[Dialogue]) -> Source:
    """The rankings of another method as candidates."""
    known: dict[tuple[Turn, ...], list[Scored]] = {
        dialogues[p.dialogue].turns[: p.turn]: list(zip(p.ranking, p.scores, strict=True))
        for p in predictions
        if p.ranking and p.scores
    }
    return lambda contexts: [known.get(tuple(turns), []) for turns in contexts]


def groups(
    predictions: Sequence[Prediction], seen: set[str], held: frozenset[str]
) -> dict[str, Targets]:
    """The targets of the table's rows.

    Args:
        seen: the items that training names.
        held: the items that were held out of it.
    """
    new = protocol_targets(predictions, "new-only")
    kinds = {
        "held out, new": held,
        "never named, new": {item for _, _, item in new.keys} - seen - held,
        "named in training, new": seen,
    }
    rows = {kind: _of_items(new, items) for kind, items in kinds.items()}
    rows["all, paper's protocol"] = protocol_targets(predictions, "paper")
    return {kind: targets for kind, targets in rows.items() if targets.keys}


def _of_items(targets: Targets, items: Collection[str]) -> Targets:
    rows = [i for i, (_, _, item) in enumerate(targets.keys) if item in items]
    return Targets(targets.ranks[rows], targets.dialogues[rows], [targets.keys[i] for i in rows])


def cells(targets: Targets, beams: Targets) -> str:
    """n, hits with the recall's interval at each of `KS`, and what they gain over the beams."""
    shown, gains = [str(len(targets.keys))], paired_runs([targets], [beams], KS)
    for k in KS:
        values = target_values(targets.ranks, k)
        low, high = bootstrap_interval(values, targets.dialogues)
        recall = f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        shown.append(f"{int(values.sum())} = {recall}")
    for k in KS:
        low, high = gains[f"difference@{k} interval"]
        shown.append(f"{100 * gains[f'difference@{k}']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
    return " | ".join(shown)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="gcrs")
    parser.add_argument("--source", default="text")
    parser.add_argument("--rule", nargs="+", choices=RULES, default=["mixture"])
    parser.add_argument("--share", type=float, nargs="+", default=[0.1])
    args = parser.parse_args(argv)
    plan = read_plan(args.out)
    dataset, held = plan_data(plan)
    dialogues = dataset.splits[plan.split][: plan.limit]
    others: dict[str, list[Prediction]] = {}
    if args.source == "text":
        source: Source = TextNeighbours(dataset.items, plan.sids.encoder)
    else:
        others["source alone"] = read_predictions(args.source, dialogues, dataset.items)
        source = source_of(others["source alone"], dialogues)
    bundle = kept_model(plan, dataset, held, args.out, args.method)
    seen = named_items(dataset.splits["train"])
    joins = [JoinedBeams(source, share, rule) for rule in args.rule for share in args.share]

    def answers(join: JoinedBeams | None) -> list[Prediction]:
        if plan.split == "test":
            log_test(args.out, arm=f"{args.method}, joined by {args.source}", join=str(join))
        return predict(
            bundle, dialogues, num_beams=plan.num_beams, replies=False, messages=False, join=join,
            progress=False,
        )  # fmt: skip

    columns = [*(f"hits@{k}" for k in KS), *(f"@{k} − beams" for k in KS)]
    print(f"| rule, share | targets | n | {' | '.join(columns)} |\n{'|---' * (3 + 2 * len(KS))}|")
    alone = answers(None)
    beams = groups(alone, seen, held)

    def show(name: str, predictions: Sequence[Prediction]) -> None:
        for kind, targets in groups(predictions, seen, held).items():
            print(f"| {name} | {kind} | {cells(targets, beams[kind])} |", flush=True)

    show("beams alone", alone)
    for name, predictions in others.items():
        show(name, predictions)
    for join in joins:
        show(f"{join.rule}, {join.share:g}", answers(join))


if __name__ == "__main__":
    main()
