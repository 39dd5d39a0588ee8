"""Builds the native module with CMake; everything else stands in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cuda = os.environ.get("CRS_FAST_CUDA", "auto")
        if cuda not in ("auto", "0", "1"):
            raise SystemExit(f"CRS_FAST_CUDA must be auto, 0 or 1 (got {cuda!r})")
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
            f"-DCRS_FAST_CUDA={cuda}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if "CMAKE_CUDA_ARCHITECTURES" in os.environ:
            architectures = os.environ["CMAKE_CUDA_ARCHITECTURES"]
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", "."], cwd=build, check=True)


setup(ext_modules=[Extension("crs_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
