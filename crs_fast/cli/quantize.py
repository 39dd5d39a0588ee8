"""`crs-fast quantize`: a data set's items, or any embeddings, to semantic IDs and a report."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from .arguments import data_arguments, sid_arguments
from .inputs import read_dataset

_WRITTEN = ("quantizer", "trie.safetensors", "report.json", "report.png")


def add(commands: Any) -> None:
    parser = commands.add_parser("quantize", help="give a catalogue semantic IDs, and a report")
    data_arguments(parser, required=False)
    parser.add_argument(
        "--embeddings",
        help="instead of --data: a .npy, .safetensors or .parquet file, floats [N, D], or a folder "
        "of .parquet files, as `crs-fast encode` writes it",
    )
    parser.add_argument("--key", help="tensor (.safetensors) or list column (.parquet) to take")
    parser.add_argument("--ids", help="column of item ids (.parquet; default: row numbers)")
    sid_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the quantizer, trie and report")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    from crs_fast._files import replacing_folder, write_text
    from crs_fast.quantize import build_sids
    from crs_fast.trie import SidTrie

    if (args.data is None) == (args.embeddings is None):
        raise ValueError("quantize: give either --data or --embeddings")
    x, ids = _embeddings(args)
    quantizer, sids, report = build_sids(
        x, args.levels, args.codes, args.method, args.seed, progress=True
    )
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # All in one step: SIDs of one run and the quantizer of another give wrong items unnoticed.
    with replacing_folder(out, kept=lambda name: name not in _WRITTEN) as partial:
        quantizer.save_pretrained(partial / "quantizer")
        SidTrie.from_sids(sids, ids).save(partial / "trie.safetensors")
        write_text(partial / "report.json", json.dumps(report, indent=1) + "\n")
        try:
            from crs_fast.quantize.plot import plot_report

            plot_report(quantizer.encode(x), report, partial / "report.png")
        except ImportError as error:
            print(f"no picture: {error}")
    print_report(report)
    print(json.dumps({"out": str(out), **report}))
    return 0


def print_report(report: dict[str, Any]) -> None:
    """One line a figure, lists level by level."""
    for name, value in report.items():
        if isinstance(value, dict):
            for part, figures in value.items():
                print(f"{name}, {part}: {_text(figures)}")
        else:
            print(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_text(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _embeddings(args: Namespace) -> tuple[Any, list[Any] | None]:
    from crs_fast.quantize import encode_texts, load_embeddings

    if args.embeddings is not None:
        x, ids = load_embeddings(args.embeddings, args.key, args.ids)
        print(f"{args.embeddings}: {x.shape[0]} x {x.shape[1]}")
        return x, ids
    from crs_fast.crs.training.pipeline import item_texts

    dataset = read_dataset(args)
    texts = encode_texts(item_texts(dataset), args.encoder, progress=True)
    return texts, [item.item_id for item in dataset.items]
