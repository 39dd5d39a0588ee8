"""The `crs-fast` command: each subcommand has a file of its own, with its arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crs_fast import __version__

from . import (
    bench,
    chat,
    encode,
    evaluate,
    info,
    predict,
    quantize,
    quickstart,
    score,
    serve,
    train,
)

COMMANDS = (
    quickstart,
    encode,
    quantize,
    train,
    evaluate,
    predict,
    score,
    chat,
    serve,
    bench,
    info,
)  # as help lists them


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
    for command in COMMANDS:
        command.add(commands)
    return parser
