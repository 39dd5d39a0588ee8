"""Compares RQ-VAE, RQ-KMeans and faiss's residual quantizer on ReDial's item catalogue:

    python benchmarks/redial_quantizers.py --root <folder that holds redial/>

It embeds the items' texts with MiniLM (kept in --cache, since this takes minutes on a CPU), fits
each quantizer, and prints a table and, as the last line, JSON. Reconstruction errors are mean
squared distances between the unit-length embeddings and what their codes decode to, before
collisions are resolved. With `--out benchmarks/results/quantizers.json`, tables.py puts the figures
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment
from benchmarks.fingerprint import fingerprint
from crs_fast.crs.data.redial import read_catalogue
from crs_fast.quantize import (
    RQVAE,
    RQKMeans,
    encode_texts,
    quantization_report,
    resolve_collisions,
)

_COLUMNS = ("seconds", "reconstruction_error", "unexplained_variance", "usage", "perplexity")
_RATES = ("collision_rate", "collision_rate_after", "largest_bucket")


class Faiss:
    """faiss.ResidualQuantizer with the methods that `quantization_report` needs."""

    def __init__(self, levels: int, codes: int, beam: int) -> None:
        import faiss

        self.faiss, self.levels, self.codes, self.beam = faiss, levels, codes, beam
        self.config = argparse.Namespace(levels=levels, codes=codes)

    def fit(self, x: torch.Tensor) -> Faiss:
        bits = self.codes.bit_length() - 1
        self.quantizer = self.faiss.ResidualQuantizer(x.shape[1], self.levels, bits)
        self.quantizer.max_beam_size = self.beam
        self.quantizer.train(x.numpy())
        books = self.faiss.vector_to_array(self.quantizer.codebooks)
        self.codebooks = torch.from_numpy(books.reshape(self.levels, self.codes, x.shape[1]))
        return self

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        packed = self.quantizer.compute_codes(x.numpy())
        bits = self.codes.bit_length() - 1
        flat = np.unpackbits(packed, axis=1, bitorder="little")[:, : self.levels * bits]
        weights = 1 << np.arange(bits)
        return torch.from_numpy(flat.reshape(len(x), self.levels, bits) @ weights)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codebooks[torch.arange(self.levels), codes].sum(1)


def measure(quantizer: Any, x: torch.Tensor) -> dict[str, Any]:
    start = time.perf_counter()
    quantizer.fit(x)
    seconds = time.perf_counter() - start
    codes = quantizer.encode(x)
    sids = resolve_collisions(quantizer.embed(x), codes, quantizer.codebooks)
    return {"seconds": seconds, **quantization_report(x, quantizer, codes, sids)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder that holds redial/")
    parser.add_argument("--cache", type=Path, help="where the embeddings are kept (.npy)")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.cache is not None and args.cache.is_file():
        x = torch.from_numpy(np.load(args.cache))
    else:
        items = read_catalogue(args.root / "redial")
        x = encode_texts([item.text() for item in items], progress=True)
        if args.cache is not None:
            np.save(args.cache, x.numpy())
    shape = {"levels": args.levels, "codes": args.codes}
    quantizers: dict[str, Any] = {
        "RQ-VAE": RQVAE(**shape, seed=args.seed),
        "RQ-VAE, EMA": RQVAE(**shape, seed=args.seed, codebook_update="ema"),
        "RQ-KMeans": RQKMeans(**shape, seed=args.seed),
    }
    for beam in (1, 5):
        try:
            quantizers[f"faiss RQ, beam {beam}"] = Faiss(args.levels, args.codes, beam)
        except ImportError:
            print("faiss is left out: not installed", file=sys.stderr)
            break
    workload = f"{len(x)} items x {x.shape[1]}, {args.levels} levels x {args.codes}"
    print(workload)
    results = {}
    for name, quantizer in quantizers.items():
        results[name] = row = measure(quantizer, x)
        figures = ", ".join(f"{c} {_text(row[c])}" for c in (*_COLUMNS, *_RATES))
        print(f"{name}: {figures}", flush=True)
        print("  nearest neighbours that share a prefix: " + _text(row["shared_prefix"]["nearest"]))
    if args.out:
        about = {
            "workload": workload,
            "fingerprint": fingerprint(("quantize",), "cpu"),
            **environment.commit(),
            "machine": environment.machine("cpu"),
            "versions": environment.versions(),
        }
        rows = [{"quantizer": name} | row | about for name, row in results.items()]
        args.out.write_text(json.dumps({"quantizers": rows}, indent=1) + "\n")
    print(json.dumps(results))
    return 0


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_text(v) for v in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
