#!/usr/bin/env bash
# One command on a bare GPU box: build with CUDA, run the gpu tests, time the GPU cases.
# Needs nvcc, pybind11, cmake, ninja, torch, transformers, pytest; no network. JSON is the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
export CRS_FAST_CUDA=1
echo "== build"
python setup.py -q build_ext --inplace >/tmp/crs_fast_build.log 2>&1 || { tail -40 /tmp/crs_fast_build.log; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python -m crs_fast.cli info
echo "== tests"
python -m pytest -q -m gpu python_tests -p no:cacheprovider
echo "== benchmarks"
timeout 240 python benchmarks/run.py --device cuda
