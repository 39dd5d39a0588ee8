"""The command `python -m benchmarks.recommendation`: runs every method on the same turns."""

from __future__ import annotations

import argparse
import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from crs_fast.cli.arguments import above_zero, machine_arguments, sid_arguments, training_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; bad input ends with one line on stderr and status 2."""
    args = _parser().parse_args(argv)
    try:
        return run(args)
    except (ValueError, KeyError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"benchmarks.recommendation: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recommendation",
        description="The paper's experiment: all methods on the same turns with the same budget. "
        "A run that was cut off goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="redial, inspired, or a folder")
    parser.add_argument("--root", help="folder that holds redial/ and inspired/ ($CRS_FAST_DATA)")
    parser.add_argument("--model", default="smollm2", help="smollm2, tiny, a path or a hub name")
    parser.add_argument("--out", help="results directory (reproduce_<data>_<model>)")
    parser.add_argument(
        "--methods",
        "--arms",
        dest="arms",
        help="names joined by commas; + adds an ablation's change (retrieval+co-mention); +copy or "
        "+copy-odds at the end fuses the ranking with copying; default: all methods that need no "
        "special data",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs per method")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=int, help="training tokens per run")
    budget.add_argument("--minutes", type=above_zero, help="training time of all runs together")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="tried on validation")
    parser.add_argument("--limit", type=int, help="answer only the first so many dialogues")
    parser.add_argument(
        "--split",
        default="test",
        choices=("valid", "test"),
        help="valid to choose between methods, test to report",
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.0,
        help="cold start: share of the split's items to hold out",
    )
    parser.add_argument("--no-replies", action="store_true", help="recommendation and mode only")
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--lora-rank", type=int, default=0, help="0 tunes every weight")
    machine_arguments(parser)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU too")
    parser.add_argument("--bf16-answers", action="store_true", help="answer in bfloat16, too")
    parser.add_argument("--context-dropout", type=float, default=0.0)
    sid_arguments(parser)
    parser.add_argument("--save-steps", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--keep-models", action="store_true", help="keep the last checkpoints")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def run(args: Namespace) -> int:
    from dataclasses import replace

    from benchmarks.recommendation.arms import choose_arms
    from benchmarks.recommendation.reproduce import Plan, reproduce, tokens_for
    from crs_fast.crs.training.config import TrainConfig
    from crs_fast.crs.training.pipeline import SidConfig
    from crs_fast.crs.training.processes import first_process

    out = Path(args.out or f"reproduce_{Path(args.data).name}_{Path(args.model).name}")
    arms = choose_arms(args.arms)
    tokens = _budget(args, out, any(arm.trains for arm in arms))
    plan = Plan(
        data=args.data,
        model=args.model,
        arms=tuple(arm.name for arm in arms),
        tokens=1 if tokens is None else tokens,  # 1 until the training speed is measured
        root=args.root,
        seeds=args.seeds,
        learning_rates=tuple(args.lr),
        split=args.split,
        limit=args.limit,
        hold_out=args.hold_out,
        replies=not args.no_replies,
        bf16_answers=args.bf16_answers,
        sids=SidConfig(args.levels, args.codes, args.method, args.encoder),
        training=TrainConfig(context_dropout=args.context_dropout, **training_config(args)),
    )
    if tokens is None:
        plan = replace(plan, tokens=tokens_for(plan, args.minutes))
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    say(f"{plan.tokens} training tokens per run")
    reproduce(plan, out, say, args.keep_models)
    if not first_process():
        return 0
    print((out / "results.md").read_text())
    figures = json.loads((out / "results.json").read_text())
    print(json.dumps({"out": str(out), "recommendation": figures["recommendation"]}))
    return 0


def _budget(args: Namespace, out: Path, trains: bool) -> int | None:
    """The training tokens per run: those given, else those of the experiment that `out` holds, or 0
    if no method trains. None if they follow from `--minutes`."""
    if args.tokens is not None:
        return int(args.tokens)
    config = out / "config.json"
    earlier = int(json.loads(config.read_text())["tokens"]) if config.is_file() else 0
    if earlier or not trains:
        return earlier
    if args.minutes is None:
        raise ValueError("reproduce: --tokens or --minutes must be given (got neither)")
    return None
