"""`crs-fast predict`: a trained recommender's answers to files of dialogues."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from .arguments import model_arguments


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", help="answer the turns of many dialogues, file by file, for score"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="DIALOGUES",
        help="files of dialogues (.jsonl, .jsonl.gz or .parquet), or folders of them",
    )
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--out", required=True, help="folder for one predictions file for each")
    model_arguments(parser)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--no-replies", action="store_true", help="rankings only")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="answer N files at a time, by Ray Data"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Answer what is not answered yet. A file that cannot be read stops no other, but the status
    says so."""
    from crs_fast.crs.evaluation.predict_files import predict_files

    from .file_results import print_results
    from .inputs import device_of, dtype_of

    results = predict_files(
        args.sources,
        args.out,
        args.model,
        num_beams=args.beams,
        replies=not args.no_replies,
        max_new_tokens=args.max_new_tokens,
        join=args.join,
        dtype=dtype_of(args),
        device=device_of(args),
        trust_remote_code=args.trust_remote_code,
        workers=args.workers,
    )
    return print_results(results, "turns", "answered", args.out)
