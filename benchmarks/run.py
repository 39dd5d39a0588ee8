"""Time every case: `python benchmarks/run.py [--size toy|full] [--device cpu|cuda] [case ...]`.

All ways of a case run interleaved in one process. Prints a table and, last, one line of JSON; with
--csv writes a row a way. A case that fails is reported and the rest still run; the exit status says
so. On the GPU a row also has the memory that the way's first call took beyond what was there.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import CASES
from benchmarks.cases.case import Case

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
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds a call, short ones repeated until the clock is no part of them; and the MiB that a
    call of each way takes besides what is held already (0 on the CPU, where nobody counts)."""
    calls, memory = {}, {}
    for name, run in ways.items():
        memory[name] = extra_memory(run, device)
        calls[name] = max(1, min(100, int(MEASURED_SECONDS / seconds(run, device, 1))))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(seconds(run, device, calls[name]))
    return times, memory


def extra_memory(run: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        run()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def rows_of(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    workload, ways = case.make(args.size, args.device)
    times, memory = measure(ways, args.device, args.repeats)
    baseline = statistics.median(next(iter(times.values())))
    rows = []
    for way, values in times.items():
        low, median, high = (
            float(q) for q in torch.tensor(values).quantile(torch.tensor([0.2, 0.5, 0.8]))
        )
        rows.append(
            {
                "case": case.name,
                "workload": workload,
                "way": way,
                "median_ms": 1e3 * median,
                "p20_ms": 1e3 * low,
                "p80_ms": 1e3 * high,
                "speedup": baseline / median,
                "extra_mib": round(memory[way]),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{rows[0]['case']}: {rows[0]['workload']}")
    for row in rows:
        memory = f"  {row['extra_mib']:6d} MiB" if row["extra_mib"] else ""
        print(
            f"  {row['way']:<32} {row['median_ms']:10.3f} ms "
            f"[{row['p20_ms']:.3f}, {row['p80_ms']:.3f}]  {row['speedup']:7.2f}x{memory}",
            flush=True,
        )


class Stopped(BaseException):
    """Somebody ended the run."""


def _stop(number: int, frame: Any) -> None:
    raise Stopped("the run was ended")


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
    parser.add_argument("--seconds", type=float, help="begin no case after so long")
    args = parser.parse_args()
    unknown = set(args.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case {sorted(unknown)}; there are {[case.name for case in CASES]}")
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    skipped: list[str] = []
    start = time.perf_counter()
    signal.signal(signal.SIGTERM, _stop)  # `timeout` ends a run, and its rows are printed
    for case in CASES:
        here = args.device in case.devices or args.size == "toy"
        if (args.cases and case.name not in args.cases) or not here:
            continue
        if args.seconds is not None and time.perf_counter() - start > args.seconds:
            skipped.append(case.name)
            continue
        try:
            mine = rows_of(case, args)
        except (Exception, Stopped) as problem:
            traceback.print_exc()
            failed[case.name] = f"{type(problem).__name__}: {problem}"
            if isinstance(problem, Stopped):
                args.seconds = 0.0
            continue
        show(mine)
        rows += mine
        if args.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    for name, reason in failed.items():
        print(f"{name}: FAILED, {reason}", flush=True)
    for name in skipped:
        print(f"{name}: not run, time was up", flush=True)
    about = machine(args.device)
    if args.csv and rows:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
            writer.writeheader()
            writer.writerows(row | about for row in rows)
    outcome = {"rows": rows, "failed": failed, "skipped": skipped}
    print(json.dumps({"machine": about, "size": args.size, **outcome}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
