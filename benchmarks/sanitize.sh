#!/usr/bin/env bash
# Memory errors, undefined behaviour and data races in csrc/, looked for by compilers' sanitizers.
#
#   benchmarks/sanitize.sh            all of the CPU's
#   benchmarks/sanitize.sh address [SECONDS]
#                                     AddressSanitizer and UndefinedBehaviorSanitizer: the tests of
#                                     ops and tries, and the bad-input table; with SECONDS each part
#                                     is ended after so long, and said to be unfinished
#   benchmarks/sanitize.sh thread     ThreadSanitizer: the threaded kernels in a program without
#                                     Python (python_tests/ops/native_driver)
#   benchmarks/sanitize.sh cuda       compute-sanitizer: every CUDA kernel, on small calls
#
# Needs gcc with its sanitizers, cmake, ninja, pybind11 and what the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(command -v python3)"

address() {
  local tree=build/asan/tree seconds="${1:-}" failed=0
  echo "== address and undefined: build"
  mkdir -p build
  cmake -S . -B build/asan -G Ninja -DCRS_FAST_CUDA=0 -DCMAKE_BUILD_TYPE=Debug \
    -DCRS_FAST_SANITIZE=address,undefined -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/build/asan/lib" >build/asan.log
  cmake --build build/asan >>build/asan.log || { tail -30 build/asan.log; return 1; }
  # The package beside this module, and none of the repository's own.
  rm -rf "$tree" && mkdir -p "$tree"
  cp -r crs_fast csrc python_tests pyproject.toml "$tree"
  rm -f "$tree"/crs_fast/_C*.so && cp build/asan/lib/_C*.so "$tree/crs_fast"
  cd "$tree"
  # Python's own leaks are none of ours. Loaded with libstdc++, or no exception could be thrown.
  # Of pytest's capture only Python's part is on: reports are written past Python.
  export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
  export PYTHONMALLOC=malloc OMP_NUM_THREADS=2
  sanitized() {
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)" \
      timeout --signal=INT "${seconds:-0}" \
      "$python" -m pytest -q -p no:cacheprovider --capture=sys --hypothesis-profile=ci "$@"
  }
  echo "== address and undefined: tests"
  # Not what compiles or starts programs of its own: they would be sanitized too.
  sanitized python_tests/ops python_tests/trie \
    --ignore python_tests/ops/native_driver --ignore python_tests/ops/tree_attention \
    --ignore python_tests/ops/trie/test_trie_gpu.py \
    -k "not interpreted and not triton and not fork and not import" 2>../reports || ended $? || failed=1
  echo "== address and undefined: bad inputs"
  # Each finding ends its worker, so that it is a row.
  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 sanitized python_tests/bad_inputs ||
    ended $? || failed=1
  grep -A 12 "runtime error\|ERROR: AddressSanitizer" ../reports && failed=1
  [ "$failed" = 0 ] && echo "no findings"
}

ended() {
  [ "$1" = 124 ] || return "$1"
  echo "ended after $seconds seconds: NOT all was run"
}

thread() {
  local folder
  folder="$(mktemp -d)"
  echo "== thread: build"
  "$python" - "$folder" <<'END'
import sys
from pathlib import Path

from python_tests.ops.native_driver import build

build(Path(sys.argv[1]), ["-fsanitize=thread"])
END
  echo "== thread: run"
  TSAN_OPTIONS=halt_on_error=1 "$folder/driver" threads
}

cuda() {
  for tool in memcheck racecheck initcheck; do
    echo "== cuda: $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 --kernel-name kernel_substring=crs \
      "$python" benchmarks/sanitize_gpu.py
  done
}

mode="${1:-}"
case "$mode" in
  address) (shift && address "$@") ;;
  thread) thread ;;
  cuda) cuda ;;
  "") (address) && thread ;;
  *) echo "sanitize.sh: the argument must be address, thread or cuda (got $mode)" >&2 && exit 2 ;;
esac
