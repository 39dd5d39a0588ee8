"""What a whole search on the CPU is made of: `python benchmarks/search_profile.py [--beams 50]`.

For the search of the cases `beams20` and `beams50` it prints the share of matrix products, of
the beams' attention, of the beam step and of everything else (the prompt's attention, the model's
element-wise operations, Python), in float32 and, with --bfloat16, in bfloat16 as well. As the last
line, JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment
from benchmarks.cases.beams import System
from crs_fast.decode import recommend, search
from crs_fast.decode.lm.tree_state import TreeState

# Of the model's layers and its head; the batched ones are inside attention.
_MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")


class Stopwatch:
    """Seconds spent in the calls of one function since the last `restart`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return out

    def restart(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def shares(of: System, normalize: str, repeats: int) -> dict[str, Any]:
    """Milliseconds per search, and the fraction of them that each part takes."""

    def run() -> None:
        recommend(
            of.model, of.ids, of.mask, trie=of.trie, vocab=of.vocab, num_beams=of.beams,
            normalize=normalize,
        )  # fmt: skip

    run()
    step, attention = Stopwatch(search.trie_step), Stopwatch(TreeState.attend)
    times: list[tuple[float, float, float]] = []  # whole, step, attention
    with (
        patch.object(search, "trie_step", step),
        # A plain function, so that the state is its first argument.
        patch.object(TreeState, "attend", lambda *args: attention(*args)),
    ):
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start, step.restart(), attention.restart()))
    whole, in_step, in_attention = (
        statistics.median(column) for column in zip(*times, strict=True)
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    products = sum(
        event.self_cpu_time_total / 1e6
        for event in profiled.key_averages()
        if event.key in _MATRIX_PRODUCTS
    )
    parts = {
        "matrix products": products / whole,
        "attention of the beams": in_attention / whole,
        "beam step": in_step / whole,
    }
    parts["the rest"] = 1 - sum(parts.values())
    return {"normalize": normalize, "ms": 1e3 * whole, **parts}


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
