"""`crs-fast info`: what was built, what is missing and how to get it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser("info", help="what was built, what is missing, how to get it")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast import show_config

    config = show_config()
    missing = config.pop("missing")
    for name, value in config.items():
        print(f"{name}: {value if value is not None else '–'}")
    if config["native"] and not config["cuda_architectures"]:
        print("CUDA kernels: not built (the PyTorch reference serves CUDA tensors)")
    for name, how in missing.items():
        print(f"missing {name}: {how}")
    return 0
