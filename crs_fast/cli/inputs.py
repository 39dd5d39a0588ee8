"""What the commands' arguments name: a data set, a trained recommender."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from crs_fast.crs.data.dialogue import CrsDataset
    from crs_fast.crs.recommender import Recommender


def read_dataset(args: Namespace) -> CrsDataset:
    """The data set that the arguments name; prints what was read."""
    from crs_fast.crs.data import ReadReport, load_dataset, located_share

    report = ReadReport()
    dataset = load_dataset(args.data, args.root, args.on_error, report)
    sizes = ", ".join(f"{len(d)} {name}" for name, d in dataset.splits.items())
    print(f"{dataset.name}: {len(dataset.items)} items; dialogues: {sizes}")
    everything = [d for split in dataset.splits.values() for d in split]
    print(f"mentions located in the text: {100 * located_share(everything):.1f} %")
    for kind, count in report.guessed.items():
        print(f"guessed: {kind}: {count}")
    for message in report.skipped:
        print(f"skipped: {message}")
    return dataset


def read_model(args: Namespace) -> Recommender:
    """The recommender that the arguments name, on the device they name."""
    from crs_fast.crs.recommender import Recommender

    recommender = Recommender.from_pretrained(
        args.model,
        dtype=dtype_of(args),
        device=device_of(args),
        trust_remote_code=args.trust_remote_code,
    )
    return recommender.with_join(args.join)


def dtype_of(args: Namespace) -> torch.dtype | None:
    """The data type that `--dtype` names; None for the weights' own."""
    import torch

    return getattr(torch, args.dtype) if args.dtype else None


def device_of(args: Namespace) -> str:
    """The device that `--device` names; without it a GPU, if there is one."""
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
