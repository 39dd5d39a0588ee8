"""What a whole search on the CPU is made of: `python benchmarks/search_profile.py [--beams 50]`.

For the search of the cases `beams20` and `beams50` it prints the share of matrix products, of
attention, of the beam step and of everything else (the model's element-wise operations and
Python), in float32 and, with --bfloat16, in bfloat16 as well. As the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment
from benchmarks.cases.beams import System
from crs_fast.decode import recommend, search

_MATMUL = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
_ATTENTION = ("aten::_scaled_dot_product_flash_attention_for_cpu", "crs_fast::tree_attention")


def shares(of: System, normalize: str, repeats: int) -> dict[str, Any]:
    """Milliseconds per search, and what fraction of them each part takes."""

    def run() -> None:
        recommend(
            of.model, of.ids, of.mask, trie=of.trie, vocab=of.vocab, num_beams=of.beams,
            normalize=normalize,
        )  # fmt: skip

    spent: list[float] = []

    def timed_step(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = trie_step(*args, **kwargs)
        spent[-1] += time.perf_counter() - start
        return out

    trie_step = search.trie_step
    run()
    totals: list[float] = []
    with patch.object(search, "trie_step", timed_step):
        for _ in range(repeats):
            spent.append(0.0)
            start = time.perf_counter()
            run()
            totals.append(time.perf_counter() - start)
    total = statistics.median(totals)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    own = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    all_own = sum(own.values())
    parts = {
        "matrix products": sum(own.get(name, 0.0) for name in _MATMUL) / all_own,
        "attention": sum(own.get(name, 0.0) for name in _ATTENTION) / all_own,
        "beam step": statistics.median(spent) / total,
    }
    parts["the rest"] = 1 - sum(parts.values())
    return {"normalize": normalize, "ms": 1e3 * total, **parts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--size", choices=("toy", "full"), default="full")
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    of = System(arguments.size, "cpu", batch=2, prompt=128, beams=arguments.beams)
    print(of.workload)
    rows = []
    for dtype in (torch.float32, torch.bfloat16)[: 1 + arguments.bfloat16]:
        of.model.to(dtype)
        for normalize in ("vocab", "level"):
            row = {"dtype": str(dtype).removeprefix("torch.")}
            row |= shares(of, normalize, arguments.repeats)
            rows.append(row)
            print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in row.items()))
    about = {"isa": environment.instruction_set("cpu"), "machine": environment.machine("cpu")}
    print(json.dumps({**about, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
