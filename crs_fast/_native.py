"""Loads the compiled module once and says what it holds, what is missing and how to get it."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from importlib import machinery
from pathlib import Path
from types import ModuleType
from typing import Any

_BUILD = "pip install --force-reinstall --no-deps ."
BUILD_HINT = f"in a clone of crs_fast, run {_BUILD} (needs a C++17 compiler)"
CUDA_HINT = f"put nvcc on PATH; in a clone of crs_fast, run CRS_FAST_CUDA=1 {_BUILD}"


@functools.cache
def load() -> ModuleType | None:
    """The compiled module, or None (with one warning) where it was not built.

    Its CPU kernels run the widest instruction set that this machine has, or the one that the
    environment variable CRS_FAST_ISA names.

    Raises:
        ValueError: this machine cannot run what CRS_FAST_ISA names.
    """
    try:
        module = importlib.import_module("crs_fast._C")
    except ImportError as error:
        installed = _installed_elsewhere()
        hint = f"To build them: {BUILD_HINT}."
        if installed is not None:
            hint = (
                f"They are installed in {installed}, but {Path(__file__).parent} comes first on "
                "the import path: leave that folder, or install it with pip install -e ."
            )
        warnings.warn(
            f"crs_fast: the native kernels are missing ({error}); the slower PyTorch reference "
            f"runs instead. {hint}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    forced = os.environ.get("CRS_FAST_ISA")
    if forced:
        if forced not in module.isas:
            raise ValueError(
                f"CRS_FAST_ISA must be one of {', '.join(module.isas)}, which this machine can run "
                f"(got {forced!r})"
            )
        module.use_isa(forced)
    return module


def _installed_elsewhere() -> Path | None:
    """Another crs_fast on the import path that has its kernels; None where there is none. So it is
    in a clone whose package was installed without -e: the clone's folder comes first."""
    here = Path(__file__).resolve().parent
    for entry in sys.path:
        package = Path(entry or ".").resolve() / "crs_fast"
        if package != here and any(
            (package / f"_C{suffix}").is_file() for suffix in machinery.EXTENSION_SUFFIXES
        ):
            return package
    return None


@functools.cache
def has_cuda(version: tuple[int, int]) -> bool:
    """Whether the compiled module holds CUDA kernels for GPUs of this compute capability: machine
    code runs from its own version on below the next major one, PTX from its own version on."""
    module = load()
    for name in module.cuda_architectures.split() if module else ():
        number, _, kind = name.partition("-")
        number = number.rstrip("af")  # code with a version's own extras
        if not number.isdigit():
            return True  # "all", "native": the compiler's choice, unknown here
        built = divmod(int(number), 10)
        if built <= version and (kind != "real" or built[0] == version[0]):
            return True
    return False


@functools.cache
def warn_no_cuda_kernels(op: str, version: tuple[int, int]) -> None:
    """Say once for each op that tensors on GPUs of this compute capability take the reference."""
    major, minor = version
    warnings.warn(
        f"{op}: no CUDA kernel was built for compute capability {major}.{minor}; CUDA tensors take "
        "the slower PyTorch reference. To build it: set "
        f"CMAKE_CUDA_ARCHITECTURES={major}{minor}, then {CUDA_HINT}",
        RuntimeWarning,
        stacklevel=2,
    )


def describe() -> dict[str, Any]:
    """What was built: `native`, `compiler`, `cuda_architectures`, and hints for what is missing;
    `isa`, the instruction set that the CPU kernels run, and `isas`, those that this machine can."""
    module = load()
    if module is None:
        return {"native": False, "missing": {"native": BUILD_HINT, "cuda": CUDA_HINT}}
    return {
        "native": True,
        "compiler": module.compiler,
        "isa": module.isa,
        "isas": ", ".join(module.isas),
        "cuda_architectures": module.cuda_architectures or None,
        "missing": {} if module.cuda_architectures else {"cuda": CUDA_HINT},
    }
