"""Loads the compiled module once and says what it holds, what is missing and how to get it."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

BUILD_HINT = "pip install --force-reinstall --no-deps crs_fast (needs a C++17 compiler)"
CUDA_HINT = "put nvcc on PATH, then CRS_FAST_CUDA=1 " + BUILD_HINT


@functools.cache
def load() -> ModuleType | None:
    """The compiled module, or None (with one warning) where it was not built."""
    try:
        return importlib.import_module("crs_fast._C")
    except ImportError as error:
        warnings.warn(
            f"crs_fast: the native kernels are missing ({error}); the slower PyTorch reference "
            f"runs instead. To build them: {BUILD_HINT}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def has_cuda() -> bool:
    """Whether the compiled module holds the CUDA kernels (not whether a GPU is there)."""
    module = load()
    return module is not None and bool(module.cuda_architectures)


@functools.cache
def warn_no_cuda_kernels(op: str) -> None:
    """Say once for each op that CUDA tensors take the reference."""
    warnings.warn(
        f"{op}: no CUDA kernel was built; CUDA tensors take the slower PyTorch reference. "
        f"To build it: {CUDA_HINT}",
        RuntimeWarning,
        stacklevel=2,
    )


def describe() -> dict[str, Any]:
    """What was built: `native`, `compiler`, `openmp`, `cuda_architectures`, and hints for what is
    missing."""
    module = load()
    if module is None:
        return {"native": False, "missing": {"native": BUILD_HINT, "cuda": CUDA_HINT}}
    return {
        "native": True,
        "compiler": module.compiler,
        "openmp": module.openmp,
        "cuda_architectures": module.cuda_architectures or None,
        "missing": {} if module.cuda_architectures else {"cuda": CUDA_HINT},
    }
