"""`crs-fast score`: every figure of a predictions.jsonl, whoever wrote it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from .arguments import data_arguments
from .inputs import read_dataset


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="figures of a predictions.jsonl (format: crs_fast/crs/evaluation/predictions.py)",
    )
    data_arguments(parser)
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument("predictions", nargs="?", help="the file; one line a recommender turn")
    file.add_argument("--template", help="write a file here instead, with everything to fill in")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument(
        "--against", help="another system's file: paired differences on the same targets"
    )
    parser.add_argument(
        "--replies",
        type=int,
        default=0,
        metavar="N",
        help="print N replies as they are, drawn at random, each with its context and gold reply",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of --replies")
    parser.add_argument(
        "--fuse-with-copying",
        choices=("ranks", "odds"),
        help="fuse the rankings with the items named before: by reciprocal ranks, or by how often "
        "training dialogues repeat an item (needs scores in the file)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast.crs.data.dialogue import need_splits
    from crs_fast.crs.evaluation.corrected_labels import label_figures
    from crs_fast.crs.evaluation.fusion import fuse_with_copying
    from crs_fast.crs.evaluation.predictions import (
        blank_predictions,
        read_predictions,
        write_predictions,
    )
    from crs_fast.crs.evaluation.reply_samples import replies_markdown
    from crs_fast.crs.evaluation.report import difference_table, scores_markdown
    from crs_fast.crs.evaluation.score import (
        PROTOCOLS,
        intent_figures,
        mode_figures,
        named_items,
        paired_difference,
        recommendation_figures,
        text_figures,
    )
    from crs_fast.crs.evaluation.sigir_standard import standard_figures
    from crs_fast.crs.evaluation.standard_report import labels_markdown, standard_markdown

    if args.template and Path(args.template).exists():
        raise ValueError(f"score: --template must be a new file (got {args.template})")
    dataset = read_dataset(args)
    need_splits(dataset, "score", [args.split])
    dialogues = dataset.splits[args.split]
    if args.template:
        blank = blank_predictions(dialogues)
        write_predictions(args.template, blank)
        print(json.dumps({"template": args.template, "turns": len(blank)}))
        return 0
    need_splits(dataset, "score", ["train"])
    ours = read_predictions(args.predictions, dialogues, dataset.items)
    if args.fuse_with_copying:
        ours = fuse_with_copying(ours, args.fuse_with_copying, dataset.splits["train"])
    figures: dict[str, Any] = {
        "recommendation": recommendation_figures(dataset, args.split, ours, name="system"),
        "mode": mode_figures(ours),
        "intents": intent_figures(ours),
        "text": text_figures(ours),
    }
    print(scores_markdown(dataset.name, args.split, **figures))
    figures["standard"] = standard_figures(dataset, args.split, {"system": ours})
    figures["labels"] = label_figures(dataset, args.split, ours, name="system")
    for tables in (
        standard_markdown(dataset.name, args.split, figures["standard"]),
        labels_markdown(figures["labels"]),
    ):
        if tables:
            print(tables)
    if args.replies:
        print(replies_markdown(dataset, args.split, ours, args.replies, args.seed))
    if args.against:
        theirs = read_predictions(args.against, dialogues, dataset.items)
        seen = named_items(dataset.splits["train"])
        figures["against"] = {
            protocol: paired_difference(ours, theirs, protocol, seen=seen)
            for protocol in PROTOCOLS
            # A system that chooses no mode has no free mode to compare.
            if protocol != "free" or all(any(p.mode for p in side) for side in (ours, theirs))
        }
        print(f"### Against {args.against}\n")
        print(difference_table(figures["against"]))
    print(json.dumps(figures))
    return 0
