#!/usr/bin/env bash
# Builds the ops that have CUDA kernels, runs their tests on this machine's GPU and prints what the
# kernels reach.
#
#   scripts/gpu_test.sh [PREFIX [CMAKE_OPTION...]]
#
# PREFIX is a folder made by scripts/dependency_prefix.sh, or '' for the system's packages.
# Exits with an error if anything does not build, if a test fails, or if there is no GPU.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
options=(-DBRAID_CUDA=ON -DBRAID_TOOLS=OFF -DBRAID_BENCH=OFF -DBRAID_INSTALL=OFF)
if [[ -n ${1:-} ]]; then
  prefix=$(cd "$1" && pwd)
  options+=("-DCMAKE_PREFIX_PATH=$prefix/usr" "-DPKG_CONFIG_EXECUTABLE=$prefix/bin/pkg-config")
fi
options+=("${@:2}")
tests=()
for kernel in braid/ops/*/cuda.cu; do
  op=$(basename "$(dirname "$kernel")")
  tests+=("op_${op}_test")
done

mkdir -p build-cuda
cmake -S . -B build-cuda -G Ninja "${options[@]}" > build-cuda/configure.log 2>&1 || {
  cat build-cuda/configure.log
  exit 1
}
cmake --build build-cuda --target "${tests[@]}" cuda_timing

failed=()
for test in "${tests[@]}"; do
  log=build-cuda/$test.log
  if ! build-cuda/braid/ops/"$test" > "$log" 2>&1; then
    failed+=("$test")
    grep -v -e '^\[ RUN' -e '^\[       OK' "$log" | head -n 60
  elif grep -m 1 '^device cuda:' "$log"; then  # skipped for want of a device
    failed+=("$test")
  fi
  echo "$test: $(grep -e '^\[  PASSED' -e '^ [0-9]* FAILED' "$log" | xargs)"
done
build-cuda/tests/cuda/cuda_timing
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
