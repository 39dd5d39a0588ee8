"""Registers, spills and shared memory of every GPU kernel, as the compilers report them:

    python benchmarks/gpu_resources.py [sm_80 sm_90 sm_120]

Needs nvcc and triton, no GPU. Ends with status 1 where a kernel spills more than a few bytes per
thread: such a kernel works from memory instead of registers. Designs that no call takes before
gpu_tune.py has timed them are listed with their names, and may spill.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
# ptxas keeps a few scalars in memory here and there; a tile that does not fit takes thousands.
MOST_SPILLED = 64
_UNTRIED = ", design "


@dataclass(frozen=True)
class Usage:
    """What one kernel takes per thread (registers, spilled bytes) and per block (shared bytes)."""

    kernel: str
    architecture: str
    registers: int
    spilled: int
    shared: int


def cuda_usage(architecture: str) -> Iterator[Usage]:
    """Every kernel of csrc/*.cu."""
    for source in sorted((ROOT / "csrc").glob("*.cu")):
        command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", f"-arch={architecture}"]
        command += ["-DCRS_FAST_WITH_CUDA", "-cubin", str(source), "-o", os.devnull]
        yield from parse(_said(command), architecture)


def triton_usage(architecture: str) -> Iterator[Usage]:
    """The Triton kernels, at the shapes that the benchmarks time."""
    for name, kernel, pointers, constants, options in _triton_kernels():
        said = _triton_compiled(kernel, pointers, constants, options, architecture)
        for usage in parse(said[0], architecture):
            yield Usage(name, architecture, usage.registers, usage.spilled, said[1])


def parse(said: str, architecture: str) -> Iterator[Usage]:
    """The lines of `ptxas -v`."""
    kernel, spilled = "", 0
    for line in said.splitlines():
        if named := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = named[1]
        if stored := re.search(r"(\d+) bytes spill stores", line):
            spilled = int(stored[1])
        if used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            yield Usage(
                _readable(kernel), architecture, int(used[1]), spilled,
                int(shared[1]) if shared else 0,
            )  # fmt: skip


def _readable(mangled: str) -> str:
    tool = shutil.which("c++filt")
    if tool is None or not mangled.startswith("_Z"):
        return mangled
    name = _said([tool, mangled]).strip().replace("(anonymous namespace)::", "")
    return name.partition("(")[0].removeprefix("void ").replace("crs::", "")


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def _triton_kernels() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """(name, kernel, types of its pointers and floats, constants, options)."""
    from crs_fast.ops.codebook import dispatch, triton_statistics
    from crs_fast.ops.codebook import triton as codebook
    from crs_fast.ops.tree_attention import triton as attention
    from crs_fast.ops.vocab_logsumexp import triton as normalizer

    for dtype, width, size in (("bf16", 128, 2), ("fp16", 64, 2), ("fp32", 64, 4)):
        pointers = {name: f"*{dtype}" for name in ("query", "key", "value")}
        pointers |= {"ancestors": "*i64", "mask": "*i1", "out": "*fp32", "lse": "*fp32"}
        pointers |= {"scale": "fp32", "softcap": "fp32"}
        rows, warps = attention._block(400, width, size)
        constants = {
            "PER": 2, "D": width, "E": width, "BD": width, "BE": width, "DEPTH": 3, "BM": rows,
            "BN": 64, "MASKED": True, "CAPPED": False,
        }  # fmt: skip
        options = {"num_warps": warps, "num_stages": 2}
        yield f"tree_attention {dtype} {width}", attention._forward, pointers, constants, options

    for dtype, size in (("bf16", 2), ("fp32", 4)):
        pointers = {name: f"*{dtype}" for name in ("hidden", "weight", "bias")}
        pointers |= {"parts": "*fp32"}
        pointers |= {name: "fp32" for name in ("scale", "softcap", "inverse_temperature")}
        tiles: dict[Any, str] = {}
        for label, design in normalizer.DESIGN.designs.items():
            tiles.setdefault(normalizer.tile_of(design, 400, size), label)
        for tile, label in tiles.items():
            constants = {
                "D": 1024, "BM": tile.rows, "BV": tile.tokens, "BD": tile.width,
                "BIASED": False, "SCALED": False, "CAPPED": True,
            }  # fmt: skip
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            name = f"vocab_logsumexp {dtype}{_of_design(normalizer.DESIGN, label)}"
            yield name, normalizer._forward, pointers, constants, options

    tables = {name: "*fp32" for name in ("x", "books", "shift", "moved", "half_squares", "norms")}
    tables |= {"codes": "*i64", "listed": "*i64", "state": "*i32", "residual": "*fp32"}
    tables |= {"margin_norm": "fp32", "margin_square": "fp32"}
    for dim, codes in ((32, 256), (128, 2048), (384, 256)):
        shape = {"D": dim, "K": codes, "L": 4}
        block_d = 64 if dim > 128 else dim
        seen = []  # fast codes, for example, know only one precision
        for label, design in codebook.DESIGN.designs.items():
            design = design.fitted(dim)
            options = {"num_warps": design.warps, "num_stages": 2}
            for exact in (False, True):
                constants = shape | {
                    "BN": design.rows, "BK": design.codes, "BD": block_d,
                    "BITS": codebook._bits(codes // design.codes), "EXACT": exact, "CUT": False,
                    "PRECISION": design.precision if exact else "tf32",
                    "KEEPS": design.keeps and dim <= block_d,
                }  # fmt: skip
                if (constants, options) in seen:
                    continue
                seen.append((constants, options))
                kind = "exact" if exact else "fast"
                name = f"residual_lookup {dim}, {codes} codes, {kind}"
                name += _of_design(codebook.DESIGN, label)
                yield name, codebook._score, tables, constants, options
        constants = shape | {"BK": 32, "BD": min(128, dim)}
        yield f"recheck {dim}", codebook._recheck, tables, constants, {"num_warps": 4}
        constants = shape | {"BN": 32, "BD": min(128, dim)}
        yield f"residual {dim}", codebook._subtract, tables, constants, {"num_warps": 4}
        sums = {"scales": "*fp64", "counts": "*i64", "sums": "*i64"}
        constants = shape | {"BN": 32, "BD": 32}
        name = f"residual_statistics {dim}{_of_design(dispatch.SUMS, 'in units')}"
        yield name, triton_statistics._finish, tables | sums, constants, {"num_warps": 4}


def _of_design(choice: Any, label: str) -> str:
    return "" if choice.designs[label] is choice.now else f"{_UNTRIED}{label}"


def _triton_compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
    architecture: str,
) -> tuple[str, int]:
    """What ptxas says of a kernel, and the shared bytes that its launch asks for."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import ASTSource

    names = kernel.arg_names
    capability = int(architecture.removeprefix("sm_"))
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    # What every call finds: aligned tensors of even strides.
    even = [
        n for n in names if signature[n].startswith("*") or re.fullmatch(r"[qkv][bhmn]|[hw]n", n)
    ]
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in even}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        named = re.search(r"\.target (\w+)", compiled.asm["ptx"])
        target = named[1] if named else architecture
        command = [nvidia.get_ptxas(capability).path, "-v", f"-arch={target}", file.name]
        return _said([*command, "-o", os.devnull]), compiled.metadata.shared


def main() -> int:
    architectures = sys.argv[1:] or list(ARCHITECTURES)
    os.environ.pop("TRITON_INTERPRET", None)
    print(f"{'kernel':<64} {'arch':<7} {'registers':>9} {'spilled B':>9} {'shared B':>9}")
    status = 0
    for architecture in architectures:
        for usage in (*cuda_usage(architecture), *triton_usage(architecture)):
            print(
                f"{usage.kernel:<64} {architecture:<7} {usage.registers:>9} {usage.spilled:>9} "
                f"{usage.shared:>9}",
                flush=True,
            )
            if usage.spilled > MOST_SPILLED and _UNTRIED not in usage.kernel:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
