"""Time benchmark cases, or compare them with another commit:

    python benchmarks/run.py [--size toy|full] [--device cpu|cuda] [--out FILE]
        [--unmeasured-first] [case ...]
    python benchmarks/run.py --base REF [--rounds N] [case ...]

All methods of a case run interleaved in one process, after a check that they agree. Prints a table
and, as the last line, JSON with one row per method. `--out` merges the rows into FILE as each case
ends: a row replaces the older one of the same case, method, device, instruction set and machine. A
case that fails is reported and the others still run; the exit status says so. On a GPU, and on the
CPU for cases about memory, a row also has the memory that the method's first call took beyond what
was allocated before.

`--base` runs the same cases of commit REF in turn with the ones here: see compare.py.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import compare, environment
from benchmarks.cases import CASES
from benchmarks.cases.case import Case, Methods
from benchmarks.fingerprint import fingerprint
from benchmarks.tables import load

MEASURED_SECONDS = 5e-3


def seconds_per_call(run: Callable[[], Any], device: str, calls: int) -> float:
    """Time `calls` calls, by events on the GPU and by the clock elsewhere."""
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
    methods: Methods, device: str, repeats: int, counts_memory: bool = False
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """For each method, `repeats` times in seconds per call, and the MiB that its first call took
    (on the CPU 0 without `counts_memory`). Short calls are repeated within one time, so that the
    clock's own cost does not show."""
    calls, memory = {}, {}
    for name, run in methods.items():
        memory[name] = extra_memory(run, device, counts_memory)
        calls[name] = max(1, min(100, int(MEASURED_SECONDS / seconds_per_call(run, device, 1))))
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, run in methods.items():
            times[name].append(seconds_per_call(run, device, calls[name]))
    return times, memory


def extra_memory(run: Callable[[], Any], device: str, counts_memory: bool = False) -> float:
    """MiB that one call takes beyond what was allocated before it."""
    if device != "cuda":
        if counts_memory:
            return _extra_cpu_memory(run)
        run()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _extra_cpu_memory(run: Callable[[], Any]) -> float:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        run()
    events: Any = profiled.profiler
    changes = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda change: change.start_ns())
    return max(accumulate((change.nbytes() for change in changes), initial=0)) / 2**20


@contextmanager
def spinning(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that want a core each, as on a busy machine. They end with this one."""
    script = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rows_of(case: Case, size: str, device: str, repeats: int) -> list[dict[str, Any]]:
    """One row per method: what was timed and how long it took."""
    workload, methods = case.make(size, device)  # raises where the methods disagree
    if case.spinning:
        workload += f"; {case.spinning} processes spin beside the run"
    with spinning(case.spinning):
        times, memory = measure(methods, device, repeats, case.counts_memory)
    baseline = statistics.median(next(iter(times.values())))
    rows = []
    for method, values in times.items():
        low, median, high = (float(q) for q in np.quantile(values, [0.2, 0.5, 0.8]))
        rows.append(
            {
                "case": case.name,
                "method": method,
                "workload": workload,
                "size": size,
                "device": device,
                "check": "passed",
                "median_ms": 1e3 * median,
                "p20_ms": 1e3 * low,
                "p80_ms": 1e3 * high,
                "speedup": baseline / median,
                "extra_mib": round(memory[method]),
                "repeats": repeats,
                "fingerprint": fingerprint(case.times, device),
            }
        )
        if case.requests:
            rows[-1]["requests_per_s"] = case.requests / median
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{rows[0]['case']}: {rows[0]['workload']}")
    width = max(len(row["method"]) for row in rows)
    for row in rows:
        memory = f"  {row['extra_mib']:6d} MiB" if row["extra_mib"] else ""
        rate = f"  {row['requests_per_s']:.1f} requests/s" if "requests_per_s" in row else ""
        print(
            f"  {row['method']:<{width}} {row['median_ms']:10.3f} ms "
            f"[{row['p20_ms']:.3f}, {row['p80_ms']:.3f}]  {row['speedup']:7.2f}x{memory}{rate}",
            flush=True,
        )


def merge(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into a results file. All rows there of the same case and setting go, so that every
    method of a case comes from one run."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    replaced = {_setting(row) for row in rows}
    kept = [row for row in old if _setting(row) not in replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in [*kept, *rows])
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(f'{{"rows": [\n{lines}\n]}}\n')
    unfinished.replace(path)


def _setting(row: dict[str, Any]) -> str:
    names = ("case", "size", "device", "isa", "machine")
    return json.dumps([row.get(name) for name in names], sort_keys=True)


class Stopped(BaseException):
    """The run was ended by a signal."""


def _stop(number: int, frame: Any) -> None:
    raise Stopped("the run was ended")


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases to run, in the registry's order; with --unmeasured-first, those whose code has no
    figure for this kind of device yet come before the others."""
    chosen = [
        case
        for case in CASES
        if (arguments.device in case.devices or arguments.size == "toy")
        and (not arguments.cases or case.name in arguments.cases)
    ]
    if arguments.unmeasured_first:
        stored = {
            (row["case"], row["fingerprint"])
            for row in load()["rows"]
            if row["device"] == arguments.device and "fingerprint" in row
        }
        now = {case.name: fingerprint(case.times, arguments.device) for case in chosen}
        chosen.sort(key=lambda case: (case.name, now[case.name]) in stored)
    return chosen


def time_cases(arguments: argparse.Namespace) -> int:
    """Run the cases one after another; returns the exit status."""
    about = {
        **environment.commit(),
        "isa": environment.instruction_set(arguments.device),
        "machine": environment.machine(arguments.device),
        "versions": environment.versions(),
    }
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    skipped: list[str] = []
    start = time.perf_counter()
    stopped = False
    for case in chosen_cases(arguments):
        late = arguments.seconds is not None and time.perf_counter() - start > arguments.seconds
        if stopped or late:
            skipped.append(case.name)
            continue
        try:
            timed = rows_of(case, arguments.size, arguments.device, arguments.repeats)
        except (Exception, Stopped) as problem:
            traceback.print_exc()
            failed[case.name] = f"{type(problem).__name__}: {problem}"
            stopped = isinstance(problem, Stopped)
            continue
        show(timed)
        timed = [row | about for row in timed]
        rows += timed
        if arguments.out:
            merge(arguments.out, timed)
        if arguments.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    for name, reason in failed.items():
        print(f"{name}: FAILED, {reason}", flush=True)
    for name in skipped:
        print(f"{name}: not run, time was up", flush=True)
    if arguments.csv and rows:
        _write_csv(arguments.csv, rows)
    print(json.dumps({"rows": rows, "failed": failed, "skipped": skipped}))
    return 1 if failed else 0


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    flat = [row | row["machine"] | row["versions"] for row in rows]
    fields = [name for name in flat[0] if name not in ("machine", "versions")]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="names of cases (default: all)")
    parser.add_argument("--size", choices=("toy", "full"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="times per method (default: 7)")
    parser.add_argument("--out", type=Path, help="write JSON: rows merged in, or the comparison")
    parser.add_argument("--csv", type=Path, help="write one line per method")
    parser.add_argument("--seconds", type=float, help="start no case after this many seconds")
    parser.add_argument(
        "--unmeasured-first",
        action="store_true",
        help="begin with the cases that have no figure for this device and this code",
    )
    parser.add_argument("--base", metavar="REF", help="compare with this commit")
    parser.add_argument(
        "--rounds", type=int, default=5, help="with --base: runs of each commit (default: 5)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case {sorted(unknown)}; there are {[case.name for case in CASES]}")
    for name in ("repeats", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1 (got {getattr(arguments, name)})")
    signal.signal(signal.SIGTERM, _stop)  # `timeout` ends a run, and its rows are printed
    changed = environment.outdated_build()
    if changed:
        print(
            f"run.py: csrc/{changed} is newer than the native module; rebuild it if its contents "
            "have changed, or these figures are another kernel's",
            file=sys.stderr,
        )
    if arguments.base:
        names = [case.name for case in chosen_cases(arguments)]
        return compare.against(arguments.base, names, arguments)
    return time_cases(arguments)


if __name__ == "__main__":
    sys.exit(main())
