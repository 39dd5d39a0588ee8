"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crs_fast.crs.training.pipeline import SidConfig


def data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        required=required,
        help="redial, inspired, starter, or a folder with items.jsonl or *_data_processed.jsonl",
    )
    parser.add_argument(
        "--root", help="folder that holds redial/ and inspired/ (default: $CRS_FAST_DATA)"
    )
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what broken lines do"
    )


def sid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--levels", type=int, default=4, help="codes a semantic ID")
    parser.add_argument("--codes", type=int, default=64, help="codewords a level")
    parser.add_argument("--method", choices=("rqvae", "rqkmeans"), default="rqvae")
    parser.add_argument(
        "--encoder", help="sentence-transformers path or hub name; without it offline MiniLM"
    )


def sid_config(args: argparse.Namespace) -> SidConfig:
    """What `sid_arguments` and `--seed` say."""
    from crs_fast.crs.training.pipeline import SidConfig

    return SidConfig(args.levels, args.codes, args.method, args.encoder, args.seed)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="where the model runs (default: a GPU, if there is one)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of its weights (default: as saved)",
    )
    parser.add_argument(
        "--join",
        type=share,
        metavar="SHARE",
        help="let the items whose texts are nearest join the beams, with this weight, such as 0.1 "
        "(docs/catalogue.md)",
    )
    trust_argument(parser)


def trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python files that come with the model; only for a model that you trust",
    )


def above_zero(text: str) -> float:
    """An argument's type: a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0 (got {text})")
    return value


def share(text: str) -> float:
    """An argument's type: a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1) (got {text})")
    return value


def machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qlora", action="store_true", help="LoRA on the backbone in 4 bits (bitsandbytes, GPU)"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, more time"
    )
    parser.add_argument(
        "--compile-layers", action="store_true", help="torch.compile: a minute first, then faster"
    )


def training_config(args: argparse.Namespace) -> dict[str, Any]:
    """What train and reproduce tell `TrainConfig` alike."""
    names = ("qlora", "gradient_checkpointing", "compile_layers", "tokens_per_batch", "max_length",
             "save_steps")  # fmt: skip
    config = {name: getattr(args, name) for name in names}
    return {**config, "lora_rank": args.lora_rank or None, "bf16": args.bf16 or None}
