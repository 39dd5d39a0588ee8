#!/usr/bin/env bash
# One command on a bare GPU box: build with CUDA, run the gpu tests, time the designs between which
# only a GPU can choose (gpu_tune.py) and the GPU cases, look for memory errors.
#
#     bash benchmarks/gpu_check.sh [--minutes 12] [--out benchmarks/results/gpu.json] [--tiny]
#
# Needs nvcc, pybind11, cmake, ninja, torch, transformers, pytest; no network. Each stage has a part
# of the time; what a stage left out is named. Cases whose kernels have no figure yet come first.
# Rows are merged into the file as each case ends; benchmarks/tables.py renders docs/benchmarks.md
# from it.
#
# --tiny rehearses on a machine without a GPU: all stages with their commands, at toy size, on the CPU
# and in Triton's interpreter; the GPU tests are only collected. Its figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=12 out="" tiny=""
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) minutes="${2:?gpu_check: --minutes must be a number}"; shift ;;
    --out) out="${2:?gpu_check: --out must be a path}"; shift ;;
    --tiny) tiny=1 ;;
    *) echo "gpu_check: unknown argument $1" >&2; exit 2 ;;
  esac
  shift
done
[[ "$minutes" =~ ^[0-9]+$ ]] && [ "$minutes" -ge 4 ] ||
  { echo "gpu_check: --minutes must be a whole number of at least 4 (got $minutes)" >&2; exit 2; }
total=$((60 * minutes))
if [ -n "$tiny" ]; then
  out="${out:-build/gpu_check/tiny.json}" architecture=90-real device=cpu size=toy
  repeats=1 tests=(--collect-only -qqq) # they need the GPU, but are imported
else
  out="${out:-benchmarks/results/gpu.json}" device=cuda size=full repeats=5 tests=()
  architecture="$(python3 -c '
import torch
torch.cuda.is_available() or exit("gpu_check: torch sees no CUDA device")
print("%d%d-real" % torch.cuda.get_device_capability())')"
fi
status=0

# Seconds that a stage may take: no more than its limit, and what the stages after it leave.
budget() { # limit, seconds kept for later stages
  local left=$((total - SECONDS - $2))
  echo $((left < 1 ? 1 : left < $1 ? left : $1))
}

without_rows() { # the last line of a benchmark holds its rows, which are in a file too
  sed --unbuffered '/^{/d'
}

echo "== build"
rm -f crs_fast/_C*.so # a module from another build would look up to date
# Not through setup.py: a bare box's setuptools may be too old for pyproject.toml. Without link-time
# optimization, which pybind11 asks for: it runs on one core, and no kernel is part of it.
log="$(mktemp)"
{
  cmake -S . -B build/gpu_check -G Ninja -DCRS_FAST_CUDA=1 -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture" \
    -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v python3)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/crs_fast" && cmake --build build/gpu_check
} >"$log" 2>&1 || { tail -40 "$log"; exit 1; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python3 -m crs_fast.cli info
echo "built after $SECONDS s"

# GPU tests are in files of their own (*_gpu.py), which need only torch and pytest. If some fail, the
# benchmarks still run, and the exit status says so. Most of a test's time is spent compiling a
# kernel, so several run at once: by pytest-xdist or else file by file. Each test prints a line, so
# that its result is known if time runs out.
seconds=$(budget 150 120)
echo "== tests, at most $seconds s"
files=(-n 1 -P 8) several=()
if python3 -c "import xdist" 2>/dev/null; then files=() several=(-n 8); fi
find python_tests -name "*_gpu.py" -print0 |
  OMP_NUM_THREADS=2 timeout --kill-after=10 "$seconds" xargs -0 "${files[@]}" \
    python3 -m pytest -vv --durations=10 "${several[@]}" "${tests[@]}" -m gpu -p no:cacheprovider ||
  { status=1; echo "tests: failed, or not all had run when time was up"; }
echo "tested after $SECONDS s"

# A design that fails is out, and its reason is printed: that is no failure of the code as it is.
seconds=$(budget $((total / 8)) $((total / 3)))
echo "== designs, at most $seconds s"
timeout --kill-after=10 "$seconds" python3 benchmarks/gpu_tune.py \
  --device "$device" --size "$size" --repeats "$repeats" --seconds $((seconds * 2 / 3)) \
  --out "${out%.json}_tune.json" | without_rows ||
  echo "designs: some failed, or not all had run when time was up"
echo "tuned after $SECONDS s; winners: ${out%.json}_tune.json"

seconds=$(budget "$total" $((total / 12)))
echo "== benchmarks, at most $seconds s"
timeout --kill-after=10 "$seconds" python3 benchmarks/run.py \
  --device "$device" --size "$size" --unmeasured-first --seconds $((seconds * 9 / 10)) \
  --repeats "$repeats" --out "$out" | without_rows || status=1
echo "timed after $SECONDS s; rows: $out"

seconds=$(budget 90 5)
echo "== memory errors, at most $seconds s"
if [ -n "$tiny" ]; then
  python3 benchmarks/sanitize_gpu.py cpu || status=1
elif command -v compute-sanitizer >/dev/null; then
  timeout --kill-after=5 "$seconds" bash benchmarks/sanitize.sh cuda ||
    { status=1; echo "memory errors: found, or not all looked for when time was up"; }
else
  echo "memory errors: not looked for, compute-sanitizer is not on PATH"
fi
echo "ended after $SECONDS s with status $status"
exit "$status"
