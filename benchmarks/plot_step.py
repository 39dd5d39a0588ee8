"""Plots step time by catalogue size: `python benchmarks/plot_step.py --out docs/step_vs_n.svg`, for
the instruction set of CRS_FAST_ISA.

It answers two questions. Does a step depend on N if the number of legal children per beam is fixed
(in a tree that fans out by 4 at every depth, so that a larger catalogue is deeper)? And what does a
legal child cost at depth 1 of random SIDs, where the number of children grows with N? It prints a
table and, as the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import instruction_set, machine
from benchmarks.run import measure
from crs_fast.ops import trie_step, trie_walk
from crs_fast.trie import SidTrie, SidVocab

CODES, BATCH, BEAMS, FAN = 2048, 2, 70, 4


def random_sids(items: int, levels: int) -> torch.Tensor:
    return torch.randint(CODES, (items, levels), generator=torch.Generator().manual_seed(0))


def fanned_sids(items: int, levels: int) -> torch.Tensor:
    """Distinct SIDs with FAN different codes on each level but the first, so that every node below
    the first level has FAN children until the items run out. The first level has all CODES."""
    index = torch.randperm(items, generator=torch.Generator().manual_seed(0))
    first = torch.arange(items) % CODES
    rest = torch.arange(items) // CODES
    level_codes = [first]
    for _ in range(levels - 1):
        level_codes.append(rest % FAN)
        rest //= FAN
    return torch.stack(level_codes, 1)[index]


def step_time(sids: torch.Tensor, depth: int, normalize: str, repeats: int) -> tuple[float, float]:
    """Microseconds per step from random prefixes, and their mean number of legal children."""
    trie = SidTrie.from_sids(sids)
    tokens = SidVocab(torch.arange(CODES).expand(trie.num_levels, CODES)).tensors()
    generator = torch.Generator().manual_seed(1)
    prefixes = sids[torch.randint(len(sids), (BATCH * BEAMS,), generator=generator)][:, :depth]
    nodes = trie_walk(trie.tensors, prefixes)
    children = [trie_children(trie, prefix) for prefix in prefixes]
    logits = torch.randn(BATCH * BEAMS, CODES, generator=generator)
    scores = torch.randn(BATCH, BEAMS, generator=generator)
    args = (logits, scores, nodes.view(BATCH, BEAMS), trie.tensors, tokens, BEAMS, normalize)
    times = measure({"step": lambda: trie_step(*args)}, "cpu", repeats)[0]["step"]
    return 1e6 * statistics.median(times), statistics.mean(children)


def trie_children(trie: SidTrie, prefix: torch.Tensor) -> int:
    one_longer = torch.cat(
        [prefix.expand(CODES, -1), torch.arange(CODES)[:, None]], 1
    )  # [CODES, depth + 1]
    return int((trie_walk(trie.tensors, one_longer) >= 0).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="*", default=[1e5, 3e5, 1e6, 3e6, 1e7])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write a plot (needs matplotlib)")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in (int(s) for s in args.sizes):
        for name, make, depth in (
            ("fan of 4, depth 1", fanned_sids, 1),
            ("fan of 4, depth 2", fanned_sids, 2),
            ("random, depth 1", random_sids, 1),
            ("random, depth 2", random_sids, 2),
            ("random, depth 4", random_sids, 4),
        ):
            spent, children = step_time(make(size, 8), depth, "vocab", args.repeats)
            rows.append({"items": size, "workload": name, "us": spent, "children": children})
            print(f"{size:>10} {name:<20} {spent:9.1f} us  {children:8.1f} children", flush=True)
    if args.out:
        plot(rows, args.out)
    print(json.dumps({"machine": machine("cpu"), "rows": rows}))
    return 0


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    isa = instruction_set("cpu")

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row["workload"] for row in rows):
        line = [row for row in rows if row["workload"] == name]
        axes.plot([r["items"] for r in line], [r["us"] for r in line], marker="o", label=name)
    axes.set(xscale="log", xlabel="items", ylabel="µs per step", ylim=(0, None))
    axes.set_title(f"trie_step, (B, M) = ({BATCH}, {BEAMS}), V = {CODES}, {isa}", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    sys.exit(main())
