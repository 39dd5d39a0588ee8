"""Builds the native module with CMake; everything else stands in pyproject.toml.

CRS_FAST_NATIVE=0 leaves the module out: the wheel is then pure Python, needs no compiler, and its
ops run as the PyTorch reference. CRS_FAST_CUDA is auto, 0 or 1.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def switch(name: str, values: tuple[str, ...], default: str) -> str:
    """An environment variable that must be one of `values`."""
    value = os.environ.get(name, default)
    if value not in values:
        raise SystemExit(f"{name} must be one of {', '.join(values)} (got {value!r})")
    return value


def check_compiler() -> None:
    """Say in one sentence that no C++17 compiler works, before setuptools and CMake say anything.
    The compiler is the one that CMake will take: CXX, or the first of its usual names."""
    usual = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    command = shlex.split(os.environ.get("CXX", "")) or usual[:1]
    failure = why_not(command) if command else "none on PATH"
    if failure:
        raise SystemExit(
            f"crs_fast needs a C++17 compiler (got {failure}). Install one (Debian and Ubuntu: apt "
            "install g++), or set CRS_FAST_NATIVE=0 to install the slower PyTorch reference alone."
        )


def why_not(command: list[str]) -> str:
    """What keeps a compiler from compiling C++17; "" where nothing does."""
    program = "#include <string_view>\nint main() { return std::string_view().size(); }\n"
    try:
        with tempfile.TemporaryDirectory() as folder:
            test = [*command, "-std=c++17", "-x", "c++", "-c", "-", "-o", f"{folder}/test.o"]
            done = subprocess.run(test, input=program, capture_output=True, text=True)
    except OSError as error:
        return f"{shlex.join(command)}: {error.strerror}"
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{shlex.join(command)}: {said[0]}" if done.returncode else ""


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            str(ROOT),
            # A cache left by an earlier isolated build names tools that are gone.
            "--fresh",
            "-G",
            "Ninja",
            f"-DCRS_FAST_CUDA={CUDA}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if "CMAKE_CUDA_ARCHITECTURES" in os.environ:
            architectures = os.environ["CMAKE_CUDA_ARCHITECTURES"]
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        for command in (configure, ["cmake", "--build", "."]):
            if subprocess.run(command, cwd=build).returncode:
                raise SystemExit("crs_fast: the native module was not built; CMake says why above.")


CUDA = switch("CRS_FAST_CUDA", ("auto", "0", "1"), "auto")
NATIVE = switch("CRS_FAST_NATIVE", ("0", "1"), "1") == "1"
if NATIVE and BUILDS & set(sys.argv):
    check_compiler()
setup(
    ext_modules=[Extension("crs_fast._C", sources=[])] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild},
)
