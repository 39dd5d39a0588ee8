"""Time every case: `python benchmarks/run.py [--size toy|full] [--device cpu|cuda] [case ...]`.

All ways of a case run interleaved in one process. Prints a table and, last, one line of JSON; with
--csv writes a row a way.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import CASES

MEASURED_SECONDS = 5e-3


def seconds(run: Callable[[], Any], device: str, calls: int) -> float:
    """One of `calls` calls, by events on the GPU and by the clock elsewhere."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def measure(
    ways: dict[str, Callable[[], Any]], device: str, repeats: int
) -> dict[str, list[float]]:
    """Seconds a call; short ones are repeated until the clock is no part of them."""
    calls = {}
    for name, run in ways.items():
        run()
        calls[name] = max(1, min(100, int(MEASURED_SECONDS / seconds(run, device, 1))))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(seconds(run, device, calls[name]))
    return times


def rows_of(name: str, workload: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    baseline = statistics.median(next(iter(times.values())))
    rows = []
    for way, values in times.items():
        low, median, high = (
            float(q) for q in torch.tensor(values).quantile(torch.tensor([0.2, 0.5, 0.8]))
        )
        rows.append(
            {
                "case": name,
                "workload": workload,
                "way": way,
                "median_ms": 1e3 * median,
                "p20_ms": 1e3 * low,
                "p80_ms": 1e3 * high,
                "speedup": baseline / median,
            }
        )
    return rows


def machine(device: str) -> dict[str, Any]:
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="default: all")
    parser.add_argument("--size", choices=("toy", "full"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    unknown = set(args.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case {sorted(unknown)}; there are {[case.name for case in CASES]}")
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if (args.cases and case.name not in args.cases) or args.device not in case.devices:
            continue
        workload, ways = case.make(args.size, args.device)
        mine = rows_of(case.name, workload, measure(ways, args.device, args.repeats))
        rows += mine
        print(f"{case.name}: {workload}")
        for row in mine:
            print(
                f"  {row['way']:<32} {row['median_ms']:10.3f} ms "
                f"[{row['p20_ms']:.3f}, {row['p80_ms']:.3f}]  {row['speedup']:7.2f}x",
                flush=True,
            )
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(json.dumps({"machine": machine(args.device), "size": args.size, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
