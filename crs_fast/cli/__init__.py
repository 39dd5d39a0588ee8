"""The `crs-fast` command: one file a subcommand, this one only parses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crs_fast import __version__

from .arguments import above_zero, data_arguments, machine_arguments, model_arguments, sid_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit status. Bad input ends with one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, KeyError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"crs-fast {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crs-fast", description="Generative conversational recommendation with semantic IDs."
    )
    parser.add_argument("--version", action="version", version=f"crs_fast {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _quickstart,
        _quantize,
        _train,
        _evaluate,
        _score,
        _chat,
        _bench,
        _info,
    ):
        add(commands)
    return parser


def _quickstart(commands) -> None:
    parser = commands.add_parser(
        "quickstart", help="the whole system on embedded data, in minutes on a CPU"
    )
    parser.add_argument("--out", default="crs_fast_quickstart", help="where artefacts go")
    parser.add_argument("--minutes", type=above_zero, default=2.5, help="training time")
    parser.add_argument("--seed", type=int, default=0)

    def run(args) -> int:
        from .quickstart import run

        return run(args.out, args.minutes, args.seed)

    parser.set_defaults(run=run)


def _quantize(commands) -> None:
    parser = commands.add_parser("quantize", help="give a catalogue semantic IDs, and a report")
    data_arguments(parser, required=False)
    parser.add_argument(
        "--embeddings",
        help="instead of --data: a .npy, .safetensors or .parquet file, floats [N, D]",
    )
    parser.add_argument("--key", help="tensor (.safetensors) or list column (.parquet) to take")
    parser.add_argument("--ids", help="column of item ids (.parquet; default: row numbers)")
    sid_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the quantizer, trie and report")
    parser.add_argument("--seed", type=int, default=0)

    def run(args) -> int:
        from .quantize import run

        return run(args)

    parser.set_defaults(run=run)


def _train(commands) -> None:
    parser = commands.add_parser("train", help="train a recommender")
    data_arguments(parser)
    sid_arguments(parser)
    parser.add_argument("--model", default="smollm2", help="hub name, path, or smollm2")
    parser.add_argument("--out", required=True, help="the model directory to write")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--minutes", type=above_zero, help="stop training after so long")
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument(
        "--embedding-lr-ratio", type=above_zero, default=1.0, help="rows' learning rate over --lr"
    )
    parser.add_argument("--lora-rank", type=int, default=16, help="0 tunes every weight")
    machine_arguments(parser)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--save-steps", type=int, default=0, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU too")
    parser.add_argument("--seed", type=int, default=0)

    def run(args) -> int:
        from .commands import train

        return train(args)

    parser.set_defaults(run=run)


def _evaluate(commands) -> None:
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

    def run(args) -> int:
        from .commands import evaluate

        return evaluate(args)

    parser.set_defaults(run=run)


def _score(commands) -> None:
    from .score import add

    add(commands, data_arguments)


def _chat(commands) -> None:
    parser = commands.add_parser("chat", help="talk to a trained recommender")
    parser.add_argument("--model", default="crs_fast_quickstart/model", help="a model directory")
    model_arguments(parser)
    parser.add_argument("--items", type=int, default=5, help="items to list under a reply")
    parser.add_argument("--sample", action="store_true", help="sample the words")

    def run(args) -> int:
        from .chat import run

        return run(args)

    parser.set_defaults(run=run)


def _bench(commands) -> None:
    parser = commands.add_parser("bench", help="time the native constraint against a Python trie")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)

    def run(args) -> int:
        from .bench import run

        return run(args.items, args.beams, args.repeats)

    parser.set_defaults(run=run)


def _info(commands) -> None:
    parser = commands.add_parser("info", help="what was built, what is missing, how to get it")

    def run(args) -> int:
        from .commands import info

        return info()

    parser.set_defaults(run=run)
