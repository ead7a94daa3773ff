#!/bin/sh
# Builds every fuzz target with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and runs each
# for SECONDS, one after another: scripts/fuzz.sh SECONDS [TARGET...]
# Seeds come from tests/fuzz/corpus/TARGET; what is found on the way is kept in BUILD/corpus/TARGET.
# Ends with one line a target: runs, edges covered of all edges, inputs kept. Fails on the first
# finding, whose input lies in BUILD/findings.
# JOBS (compilers at once, 2), BUILD (folder, build-fuzz), CLANG (clang++) may be set.
set -eu
[ $# -ge 1 ] || { echo "usage: scripts/fuzz.sh SECONDS [TARGET...]" >&2; exit 2; }
seconds=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$root/build-fuzz}
if [ $# -eq 0 ]; then
  for source in "$root"/tests/fuzz/*.cpp; do set -- "$@" "$(basename "$source" .cpp)"; done
fi

targets=
for name in "$@"; do targets="$targets fuzz_$name"; done
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="${CLANG:-clang++}" \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -gline-tables-only" \
  -DBRAID_FUZZ=ON -DBRAID_TESTS=OFF -DBRAID_BENCH=OFF \
  -DBRAID_TOOLS=OFF -DBRAID_INSTALL=OFF -DBRAID_SANITIZE=fuzzer-no-link,address,undefined >/dev/null
# shellcheck disable=SC2086  # a list of words
ninja -C "$build" -j"${JOBS:-2}" $targets

mkdir -p "$build/findings"
report=$build/fuzz-report.txt
: > "$report"
for name in "$@"; do
  corpus=$build/corpus/$name
  mkdir -p "$corpus"
  seeds=$root/tests/fuzz/corpus/$name
  [ -d "$seeds" ] || seeds=
  dictionary=$root/tests/fuzz/$name.dict
  [ -f "$dictionary" ] && dictionary="-dict=$dictionary" || dictionary=
  log=$build/$name.log
  # shellcheck disable=SC2086  # an absent dictionary or seed folder is no argument
  if ! "$build/tests/fuzz/fuzz_$name" -max_total_time="$seconds" -max_len=65536 -timeout=20 \
      -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$build/findings/$name-" \
      $dictionary "$corpus" $seeds >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "fuzz: $name: a finding, see $log" >&2
    exit 1
  fi
  edges=$(sed -n 's/.*Loaded 1 modules *(\([0-9]*\) inline.*/\1/p' "$log" | head -n 1)
  covered=$(sed -n 's/^#.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  kept=$(find "$corpus" -type f | wc -l)
  printf '%-16s %10s runs, %s of %s edges, %s inputs kept\n' \
    "$name" "$runs" "$covered" "$edges" "$kept" | tee -a "$report"
done
