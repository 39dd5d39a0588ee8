#!/usr/bin/env bash
# One command on a bare GPU box: build with CUDA, run the gpu tests, time the GPU cases.
# Needs nvcc, pybind11, cmake, ninja, torch, transformers, pytest; no network. The last line is JSON,
# which benchmarks/tables.py reads from a file in benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -c 'import torch; torch.cuda.is_available() or exit("gpu_check: torch sees no CUDA device")'
echo "== build"
rm -f crs_fast/_C*.so  # a module from another build would look up to date
# Not through setup.py: a bare box's setuptools may be too old for pyproject.toml.
log="$(mktemp)"
{
  cmake -S . -B build/gpu_check -G Ninja -DCRS_FAST_CUDA=1 -DCMAKE_BUILD_TYPE=Release \
    -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v python3)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/crs_fast" && cmake --build build/gpu_check
} >"$log" 2>&1 || { tail -40 "$log"; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python3 -m crs_fast.cli info
echo "== tests"
# GPU tests are in files of their own (*_gpu.py), which need only torch and pytest. If some fail, the
# benchmarks still run, and the exit status says so.
status=0
# Most of a test's time is spent compiling a kernel, so several run at once: by pytest-xdist or else
# file by file. Each test prints a line, so that its result is known if time runs out.
files=(-n 1 -P 8) several=()
if python3 -c "import xdist" 2>/dev/null; then files=() several=(-n 8); fi
find python_tests -name "*_gpu.py" -print0 |
  OMP_NUM_THREADS=2 xargs -0 "${files[@]}" timeout 170 \
    python3 -m pytest -vv --durations=10 "${several[@]}" -m gpu -p no:cacheprovider ||
  status=1
echo "== benchmarks"
# The rest of eight minutes. A case for which no time is left is named; that is no failure.
timeout --kill-after=10 $((460 - SECONDS)) python3 benchmarks/run.py --device cuda \
  --seconds $((410 - SECONDS)) --repeats 5 || status=1
exit "$status"
