#!/usr/bin/env bash
# The laws over mpirun with four processes; then one that fails, one that dies: mpirun must end soon
# and say so. usage: mpi_transport_test.sh MPIRUN BINARY
set -euo pipefail
mpi=("$1" --oversubscribe --allow-run-as-root -n 4)
binary=$2
said=$(mktemp)
trap 'rm -f "$said"' EXIT

"${mpi[@]}" "$binary" >"$said" 2>&1 || { cat "$said"; exit 1; }
grep -q '^4 ranks keep the laws' "$said"

for mode in fail die; do
  code=0
  timeout 60 "${mpi[@]}" "$binary" "$mode" >"$said" 2>&1 || code=$?
  if [[ $code == 0 || $code == 124 ]] || grep -q 'keep the laws' "$said"; then
    echo "$mode: code $code"
    cat "$said"
    exit 1
  fi
  [[ $mode != fail ]] || grep -q '^rank 1: a broken file' "$said"
  [[ $mode != die ]] || grep -q 'signal 9' "$said"
done
