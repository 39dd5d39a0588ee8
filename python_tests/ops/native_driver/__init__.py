"""The threaded kernels of csrc/ in a program without Python (see `driver.cpp`)."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
SOURCES = ["codebook", "dispatch", "isa", "threads", "trie_build", "trie_change"]
SOURCES += ["trie_mask", "trie_rows", "trie_step", "trie_walk"]


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++")


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compile it into `folder`, for the portable instruction set."""
    options = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wno-psabi", "-pthread"]
    options += ["-DCRS_ISA=portable", "-DCRS_ONLY_PORTABLE", f"-I{CSRC}", *flags]
    sources = [HERE / "driver.cpp", *(CSRC / f"{name}.cpp" for name in SOURCES)]
    program = folder / "driver"
    subprocess.run([compiler(), *options, *map(str, sources), "-o", str(program)], check=True)
    return program
