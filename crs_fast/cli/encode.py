"""`crs-fast encode`: the text embeddings of a large catalogue, file by file."""

from __future__ import annotations

from argparse import Namespace
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "encode", help="embed a large catalogue's texts, file by file, for quantize --embeddings"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="ITEMS",
        help="files of items (.jsonl, .jsonl.gz or .parquet), or folders of them",
    )
    parser.add_argument("--out", required=True, help="folder for one .parquet file for each")
    parser.add_argument(
        "--encoder", help="sentence-transformers path or hub name; without it offline MiniLM"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="texts of one forward pass")
    parser.add_argument("--device", help="where the encoder runs (default: a GPU, if there is one)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="encode N files at a time, by Ray Data"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Encode what is not encoded yet. A file that cannot be read stops no other, but the status
    says so."""
    from crs_fast.crs.catalogue_encoding import encode_catalogue

    from .file_results import print_results
    from .inputs import device_of

    results = encode_catalogue(
        args.sources,
        args.out,
        args.encoder,
        batch_size=args.batch_size,
        device=device_of(args),
        workers=args.workers,
    )
    return print_results(results, "items", "encoded", args.out)
