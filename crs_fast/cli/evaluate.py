"""`crs-fast evaluate`: every figure of a trained recommender on a split."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from .arguments import data_arguments, model_arguments
from .inputs import read_dataset, read_model


def add(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="evaluate a trained recommender")
    data_arguments(parser)
    parser.add_argument("--model", required=True, help="a directory that train wrote")
    model_arguments(parser)
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--out", help="folder for tables and predictions (default: --model)")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--limit", type=int, help="only the first so many dialogues")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--no-replies", action="store_true", help="recommendation figures only")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast.crs.data.dialogue import need_splits
    from crs_fast.crs.evaluation.evaluate import evaluate, log_test

    dataset = read_dataset(args)
    need_splits(dataset, "evaluate", ("train", args.split))  # nothing is loaded or logged in vain
    recommender = read_model(args)
    folder = Path(args.out or Path(args.model) / "training")
    if args.split == "test":
        log_test(folder, model=str(args.model), data=dataset.name, limit=args.limit)
    evaluation = evaluate(
        recommender,
        dataset,
        args.split,
        num_beams=args.beams,
        replies=not args.no_replies,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
    )
    evaluation.save(folder)
    print(evaluation.markdown())
    print(f"written to {folder}")
    print(json.dumps(evaluation.to_dict()))
    return 0
