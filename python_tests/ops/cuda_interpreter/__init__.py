"""The CUDA kernels of csrc/ compiled for the CPU, where a block's threads take turns in a random
order (see cuda_runtime.h), as the native module's CPU functions."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
KERNELS = ["trie_mask", "trie_step", "trie_walk"]
OTHERS = ["trie_build", "trie_change", "trie_mask", "trie_rows", "trie_step", "trie_walk"]
OTHERS += ["bindings_constants", "bindings_trie", "codebook", "dispatch", "isa", "threads"]
HEADERS = ["select"]
MODULE = """
#include "bindings.h"
PYBIND11_MODULE(interpreted, m) {
  bind_constants(m);
  bind_trie(m);
}
"""


def translated(source: str) -> str:
    """CUDA as C++ over cuda_runtime.h."""
    source = re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];",
        r"\1* \2 = static_cast<\1*>(interpreter::dynamic_shared());",
        source,
    )
    source = source.replace("__shared__", "static")
    return re.sub(
        r"(\w+(?:<\w+>)?)<<<([^;]*?),\s*([^,;]*?),\s*([^,;]*?),\s*[^,;]*?>>>\(([^;]*)\);",
        r"interpreter::launch(\2, \3, \4, [&] { \1(\5); });",
        source,
    )


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++")


def build(folder: Path) -> SimpleNamespace:
    """Compile into `folder`. Has `trie_walk`, `trie_mask` and `trie_step` of the native module."""
    (folder / "module.cpp").write_text(MODULE)
    # Beside the kernels, so that they include these and not those of csrc/.
    for name in HEADERS:
        (folder / f"{name}.cuh").write_text(translated((CSRC / f"{name}.cuh").read_text()))
    for name in KERNELS:
        (folder / f"{name}_cuda.cpp").write_text(translated((CSRC / f"{name}.cu").read_text()))
    sources = [folder / "module.cpp", HERE / "interpreter.cpp"]
    sources += [folder / f"{name}_cuda.cpp" for name in KERNELS]
    sources += [CSRC / f"{name}.cpp" for name in OTHERS]
    includes = [HERE, CSRC, Path(torch.__file__).parent / "include", sysconfig.get_path("include")]
    # In a namespace of its own: the module's classes must not be those of the real one.
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Dcrs=crs_interpreted"]
    flags += ["-DCRS_FAST_WITH_CUDA", "-DCRS_ISA=portable", "-DCRS_ONLY_PORTABLE"]
    flags += ["-Wno-psabi", *(f"-I{path}" for path in includes)]
    objects = [folder / f"{source.stem}.o" for source in sources]
    # Optimizing pybind11's templates would take longer than all else, and runs once a call.
    level = {source: "-O0" if source.stem.startswith(("module", "bindings")) else "-O1"
             for source in sources}  # fmt: skip
    jobs = [
        subprocess.Popen([compiler(), *flags, level[source], "-c", str(source), "-o", str(out)])
        for source, out in zip(sources, objects, strict=True)
    ]
    assert not any([job.wait() for job in jobs])
    library = folder / "interpreted.so"
    subprocess.run([compiler(), "-shared", *map(str, objects), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("interpreted", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def step(args):
        workspace = torch.empty(module.trie_step_workspace(args), dtype=torch.uint8)
        module.trie_step_cuda(args, workspace.data_ptr(), 0)

    names = ["Trie", "Filter", "Tokens", "MaskArgs", "StepArgs", "TrieBuilder"]
    names += ["TrieArrays", "DType", "Normalize"]
    return SimpleNamespace(
        **{name: getattr(module, name) for name in names},
        trie_walk=lambda threads, **args: module.trie_walk_cuda(**args, stream=0),
        trie_mask=lambda args: module.trie_mask_cuda(args, 0),
        trie_step=step,
    )
