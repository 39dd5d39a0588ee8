"""`crs-fast train`: a recommender from a data set and a language model."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from .arguments import (
    above_zero,
    data_arguments,
    machine_arguments,
    sid_arguments,
    sid_config,
    training_config,
)
from .inputs import read_dataset


def add(commands: Any) -> None:
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
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast.crs.backbones import load_backbone
    from crs_fast.crs.training.config import TrainConfig
    from crs_fast.crs.training.pipeline import train_recommender

    dataset = read_dataset(args)
    config = TrainConfig(
        epochs=args.epochs,
        max_minutes=args.minutes,
        learning_rate=args.lr,
        embedding_lr_ratio=args.embedding_lr_ratio,
        seed=args.seed,
        **training_config(args),
    )
    result = train_recommender(
        dataset,
        load_backbone(args.model, four_bit=args.qlora),
        args.out,
        sids=sid_config(args),
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
