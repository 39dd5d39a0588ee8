"""Where and with what a benchmark ran: commit, machine, instruction set, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from crs_fast import _native

ROOT = Path(__file__).resolve().parent.parent


def commit() -> dict[str, Any]:
    """The commit checked out here, and whether tracked files differ from it (docs and results,
    which benchmarks write themselves, do not count). Where git does not know this folder (a copy
    on another machine), the commit is what `CRS_FAST_COMMIT` says, or None."""
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        code = (".", ":!docs", ":!benchmarks/results")
        return {"commit": name, "dirty": bool(_git("status", "--porcelain", "-uno", "--", *code))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("CRS_FAST_COMMIT"), "dirty": None}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def machine(device: str) -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def instruction_set(device: str) -> str:
    """What the native kernels run on: "avx512", "avx2", "portable" or "not built" on the CPU, the
    compute capability on a GPU."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"
    native = _native.describe()
    if not native["native"]:
        return "not built"
    if native.get("isa"):
        return native["isa"]
    highest = torch.backends.cpu.get_cpu_capability().lower()
    return highest if highest in ("avx512", "avx2") else "portable"


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {
        name: _version(name) for name in ("torch", "transformers", "triton")
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def outdated_build() -> str | None:
    """The newest file of csrc that was changed after the native module was built, if any."""
    built = [file.stat().st_mtime for file in (ROOT / "crs_fast").glob("_C*.so")]
    newest = max((ROOT / "csrc").iterdir(), key=lambda file: file.stat().st_mtime)
    return newest.name if built and newest.stat().st_mtime > max(built) else None
