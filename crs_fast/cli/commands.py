"""train, evaluate, info: thin wrappers around the Python functions."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import training_config

if TYPE_CHECKING:
    from crs_fast.crs.recommender import Recommender


def read_dataset(args: Namespace):
    """The data set that the arguments name; prints what was read."""
    from crs_fast.crs.data import ReadReport, load_dataset, located_share

    report = ReadReport()
    dataset = load_dataset(args.data, args.root, args.on_error, report)
    sizes = ", ".join(f"{len(d)} {name}" for name, d in dataset.splits.items())
    print(f"{dataset.name}: {len(dataset.items)} items; dialogues: {sizes}")
    everything = [d for split in dataset.splits.values() for d in split]
    print(f"mentions located in the text: {100 * located_share(everything):.1f} %")
    for where in report.skipped:
        print(f"skipped: {where}")
    return dataset


def read_model(args: Namespace) -> Recommender:
    """The recommender that the arguments name, on the device they name."""
    import torch

    from crs_fast.crs.recommender import Recommender

    dtype = getattr(torch, args.dtype) if args.dtype else None
    return Recommender.from_pretrained(args.model, dtype=dtype, device=_device(args))


def _device(args: Namespace) -> str:
    import torch

    if args.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{args.command}: --device must be one that PyTorch finds here "
            f"(got {args.device!r}: {str(error).splitlines()[0]})"
        ) from error
    return args.device


def _sid_config(args: Namespace):
    from crs_fast.crs.training.pipeline import SidConfig

    return SidConfig(args.levels, args.codes, args.method, args.encoder, args.seed)


def train(args: Namespace) -> int:
    from crs_fast.crs.backbones import load_backbone
    from crs_fast.crs.training.pipeline import train_recommender
    from crs_fast.crs.training.train import TrainConfig

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
        sids=_sid_config(args),
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


def evaluate(args: Namespace) -> int:
    from benchmarks.recommendation.answering import log_test
    from crs_fast.crs.data.dialogue import need_splits
    from crs_fast.crs.evaluation.evaluate import evaluate as run

    dataset = read_dataset(args)
    need_splits(dataset, "evaluate", ("train", args.split))  # nothing is loaded or logged in vain
    recommender = read_model(args)
    folder = Path(args.out or Path(args.model) / "training")
    if args.split == "test":
        log_test(folder, model=str(args.model), data=dataset.name, limit=args.limit)
    evaluation = run(
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


def info() -> int:
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
