"""`crs-fast train`: a recommender from a data set and a language model."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .arguments import (
    above_zero,
    data_arguments,
    machine_arguments,
    share,
    sid_arguments,
    sid_config,
    training_config,
    trust_argument,
)
from .inputs import read_dataset

if TYPE_CHECKING:
    from crs_fast.crs.training.pipeline import SidConfig


MODEL = "hub name, path, smollm2, or tiny: a small model from scratch, for machines without a GPU"
CO_MENTIONS = "semantic IDs also from which items training dialogues name together"
TITLES = "items are written as their titles, without semantic IDs"
EVERY_MENTION = "also train on every item that is named, by either role"


def add(commands: Any) -> None:
    parser = commands.add_parser("train", help="train a recommender")
    data_arguments(parser)
    sid_arguments(parser)
    parser.add_argument("--co-mentions", action="store_true", help=CO_MENTIONS)
    parser.add_argument("--titles", action="store_true", help=TITLES)
    parser.add_argument("--every-mention", action="store_true", help=EVERY_MENTION)
    parser.add_argument("--model", default="smollm2", help=MODEL)
    trust_argument(parser)
    parser.add_argument("--out", required=True, help="the model directory to write")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--minutes", type=above_zero, help="stop training after so long")
    parser.add_argument(
        "--lr", type=above_zero, help="peak learning rate (default: 2e-4, 1e-3 for tiny)"
    )
    parser.add_argument(
        "--embedding-lr-ratio", type=above_zero, default=1.0, help="rows' learning rate over --lr"
    )
    parser.add_argument(
        "--lora-rank", type=int, help="0 tunes every weight (default: 16, always 0 for tiny)"
    )
    parser.add_argument("--lora-dropout", type=share, help="of the adapter (default: 0.05)")
    machine_arguments(parser)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--save-steps", type=int, default=0, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU too")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast.crs.training.backbone import starting_backbone
    from crs_fast.crs.training.config import TrainConfig
    from crs_fast.crs.training.pipeline import train_recommender
    from crs_fast.quantize import encode_texts

    sids = _sids(args)
    _settle_rates(args)
    config = TrainConfig(
        epochs=args.epochs,
        max_minutes=args.minutes,
        learning_rate=args.lr,
        embedding_lr_ratio=args.embedding_lr_ratio,
        every_mention=args.every_mention,
        seed=args.seed,
        **({} if args.lora_dropout is None else {"lora_dropout": args.lora_dropout}),
        **training_config(args),
    )
    dataset = read_dataset(args)
    backbone = starting_backbone(
        args.model,
        dataset,
        four_bit=args.qlora,
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
        encode=partial(encode_texts, encoder=args.encoder),
    )
    result = train_recommender(
        dataset,
        backbone,
        args.out,
        sids=sids,
        titles=args.titles,
        training=config,
        resume=args.resume,
    )
    summary = {
        "out": str(args.out),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "final_loss": result.losses[-1]["loss"] if result.losses else None,
    }
    print(json.dumps(summary))
    return 0


def _sids(args: Namespace) -> SidConfig | None:
    """How items get semantic IDs; None with --titles, which leaves nothing to say about them."""
    from crs_fast.crs.training.pipeline import SidConfig

    config = sid_config(args)
    if args.co_mentions:
        config = replace(config, signals=("text", "co-mention"))
    if not args.titles:
        return config
    if config != SidConfig(seed=args.seed):
        raise ValueError(
            "train: --levels, --codes, --method, --encoder and --co-mentions must be left out with "
            "--titles, which has no semantic IDs"
        )
    return None


def _settle_rates(args: Namespace) -> None:
    """Learning rate and adapter rank where they were left open: a model from scratch is trained
    whole, and faster."""
    tiny = args.model == "tiny"
    if tiny and (args.qlora or args.lora_rank):
        raise ValueError(
            "train: --lora-rank and --qlora must be left out with --model tiny, which has no "
            "trained weights to adapt"
        )
    if args.lora_dropout is not None and (tiny or args.lora_rank == 0):
        raise ValueError(
            "train: --lora-dropout must be left out without an adapter, with --model tiny or "
            f"--lora-rank 0 (got {args.lora_dropout})"
        )
    if args.lora_rank is None:
        args.lora_rank = 0 if tiny else 16
    if args.lr is None:
        args.lr = 1e-3 if tiny else 2e-4
