"""`run.py --base REF`: is the code here slower or faster than at another commit?

REF is checked out in a temporary git worktree and its kernels are compiled there (the native module
of this tree is copied where csrc is the same at both). Then, for each case, REF's own run.py and
this tree's run in turn, base and head, in processes of their own. Each round gives one ratio of
medians per method, head / base; what is reported is the median ratio with the lowest and highest.
Rows are matched by their names, so the two commits may differ in everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import environment

ROOT = Path(__file__).resolve().parent.parent
# A difference is called one if every round shows it and the median is beyond this.
NOTABLE = 0.03
FEWEST_ROUNDS = 3


def against(ref: str, names: list[str], arguments: argparse.Namespace) -> int:
    """Compare the cases of these names with commit `ref`; returns the exit status."""
    try:
        base_commit = _git("rev-parse", "--short=10", "--verify", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError:
        print(f"run.py: --base must be a commit (got {ref!r})", file=sys.stderr)
        return 2
    if not list((ROOT / "crs_fast").glob("_C*.so")):
        print("run.py: --base needs the native module, which was not built here", file=sys.stderr)
        return 2
    outcome: dict[str, Any] = {
        "base": {"commit": base_commit},
        "head": environment.commit(),
        "isa": environment.instruction_set(arguments.device),
        "machine": environment.machine(arguments.device),
        "versions": environment.versions(),
        "size": arguments.size,
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
        "ratios": [],
        "failed": {},
        "missing": {},
    }
    try:
        with checkout(base_commit, arguments.device) as base:
            _compare_all(names, base, arguments, outcome)
    except RuntimeError as problem:
        print(problem, file=sys.stderr)
        return 2
    for change in ("slower", "faster"):
        methods = [
            f"{r['case']}, {r['method']}" for r in outcome["ratios"] if r["verdict"] == change
        ]
        print(f"{change}: {'; '.join(methods) or 'none'}")
    for name, reason in outcome["failed"].items():
        print(f"{name}: FAILED, {reason}", flush=True)
    print(json.dumps(outcome))
    return 1 if outcome["failed"] else 0


def _compare_all(
    names: list[str], base: Path, arguments: argparse.Namespace, outcome: dict[str, Any]
) -> None:
    known = _case_names(base)
    for name in names:
        if name in known:
            _compare_case(name, base, arguments, outcome)
        else:
            outcome["missing"][name] = "base"
            print(f"{name}: not there at the base", flush=True)
        if arguments.out:  # what is known so far, should the run be ended
            arguments.out.write_text(json.dumps(outcome, indent=1) + "\n")


@contextmanager
def checkout(commit: str, device: str) -> Iterator[Path]:
    """A temporary worktree of the commit with its native module in place."""
    with tempfile.TemporaryDirectory(prefix="crs_fast_base_") as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            if _same_native_sources(commit):
                for built in (ROOT / "crs_fast").glob("_C*.so"):
                    shutil.copy2(built, tree / "crs_fast")
            else:
                print(f"building the kernels of {commit}", file=sys.stderr, flush=True)
                build(tree, device)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _same_native_sources(commit: str) -> bool:
    paths = ("csrc", "CMakeLists.txt")
    changed = subprocess.run(["git", "diff", "--quiet", commit, "--", *paths], cwd=ROOT)
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *paths)
    return changed.returncode == 0 and not untracked


def build(tree: Path, device: str) -> None:
    """Compile the native module of a source tree into it, as setup.py does. Where pybind11 is not
    installed in this environment, CMake looks for it (`CMAKE_PREFIX_PATH`)."""
    try:
        import pybind11

        where = [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    except ImportError:
        where = []
    configure = [
        "cmake", "-S", str(tree), "-B", str(tree / "build" / "base"), "-G", "Ninja",
        f"-DCRS_FAST_CUDA={int(device == 'cuda')}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release", *where,
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'crs_fast'}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(tree / "build" / "base")]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"{done.stdout}{done.stderr}\nrun.py: the kernels of --base must compile, which "
                "needs pybind11, cmake and ninja (pip install pybind11 cmake ninja)"
            )


def _case_names(tree: Path) -> list[str]:
    code = "from benchmarks.cases import CASES; print(*(case.name for case in CASES))"
    done = _python(tree, "-c", code)
    if done.returncode:
        raise RuntimeError(f"the base's cases do not load:\n{done.stderr}")
    return done.stdout.splitlines()[-1].split()


def _compare_case(
    name: str, base: Path, arguments: argparse.Namespace, outcome: dict[str, Any]
) -> None:
    """Add one case's ratios to the outcome, or why there are none."""
    trees = {"base": base, "head": ROOT}
    medians: dict[str, dict[str, list[float]]] = {side: {} for side in trees}
    workloads: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for side, tree in trees.items():
            rows, problem = _run_case(tree, name, arguments)
            if problem:
                outcome["failed"][name] = f"{side}: {problem}"
                return
            for row in rows:
                method = row.get("method", row.get("way"))  # "way" before run.py had --base
                medians[side].setdefault(method, []).append(row["median_ms"])
                workloads[side] = row["workload"]
    ratios = _ratios(name, medians, workloads)
    _show(ratios, workloads)
    outcome["ratios"] += ratios
    for method in medians["head"].keys() ^ medians["base"].keys():
        outcome["missing"][f"{name}, {method}"] = "base" if method in medians["head"] else "head"


def _run_case(
    tree: Path, name: str, arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of one run of the tree's own run.py, and what went wrong, if anything."""
    done = _python(
        tree, "benchmarks/run.py", name, "--size", arguments.size, "--device", arguments.device,
        "--repeats", str(arguments.repeats),
    )  # fmt: skip
    try:
        result = json.loads(done.stdout.splitlines()[-1])
        rows, failed = result["rows"], result["failed"]
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return [], lines[-1]
    if failed:
        return [], failed.get(name, str(failed))
    return (rows, None) if rows else ([], "no row was printed")


def _python(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )


def _ratios(
    name: str, medians: dict[str, dict[str, list[float]]], workloads: dict[str, str]
) -> list[dict[str, Any]]:
    rows = []
    for method, head in medians["head"].items():
        base = medians["base"].get(method)
        if base is None:
            continue
        ratios = [new / old for old, new in zip(base, head, strict=True)]
        rows.append(
            {
                "case": name,
                "method": method,
                "workload": workloads["head"],
                "same_workload": workloads["head"] == workloads["base"],
                "base_ms": base,
                "head_ms": head,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "verdict": verdict(ratios),
            }
        )
    return rows


def verdict(ratios: list[float]) -> str:
    """ "slower" or "faster" if every round and, by more than NOTABLE, the median say so."""
    if len(ratios) < FEWEST_ROUNDS:
        return "too few rounds to tell"
    median = statistics.median(ratios)
    if min(ratios) > 1 and median > 1 + NOTABLE:
        return "slower"
    if max(ratios) < 1 and median < 1 - NOTABLE:
        return "faster"
    return "no clear difference"


def _show(ratios: list[dict[str, Any]], workloads: dict[str, str]) -> None:
    if not ratios:
        return
    print(f"{ratios[0]['case']}: {workloads['head']}")
    if not ratios[0]["same_workload"]:
        print(f"  described otherwise at the base: {workloads['base']}")
    width = max(len(row["method"]) for row in ratios)
    for row in ratios:
        print(
            f"  {row['method']:<{width}} {statistics.median(row['base_ms']):10.3f} -> "
            f"{statistics.median(row['head_ms']):10.3f} ms  x{row['ratio']:.3f} "
            f"[{row['ratio_min']:.3f}, {row['ratio_max']:.3f}]  {row['verdict']}",
            flush=True,
        )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
