#!/usr/bin/env bash
# The loss of a model of experts against how many of them are kept: one call of merge-experts that
# merges as long as a pair is left, and the tables of docs/merging_experts.md from what it prints.
#
#   scripts/merge_curve.sh BRAID MODEL TEXT [TOKENS]   writes the report of merge-experts to stdout
#   scripts/merge_curve.sh --render REPORT             writes the table of such a report to stdout
set -euo pipefail
export LC_ALL=C

measure() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$1" merge-experts --model "$2" --data "$3" --tokens "${4:-32768}" --threshold 2 \
    --max-loss-increase 10 --out "$folder/out"
}

# Every point at which so many merges are done that an eighth of the experts that can go is gone.
render() {
  awk '
    /^loss/ { base = $2 + 0; tokens = $4 }
    /^sublayer/ { experts += $3; chosen += $5; layers += 1 }
    /^merged/ {
      ++merges; error[merges] = $11 + 0
      match($0, /-> [0-9.]+/); loss[merges] = substr($0, RSTART + 3, RLENGTH - 3) + 0
    }
    /^stack/ { stack = substr($0, 7) }
    END {
      printf "%d layers of experts, %d chosen a layer, loss on %d held-out tokens:\n\n", layers, chosen / layers, tokens
      print "| experts kept | loss | increase | error of the pair merged last |"
      print "|---:|---:|---:|---:|"
      printf "| %d | %.4f | | |\n", experts, base
      can_go = experts - chosen
      for (m = 1; m <= merges; ++m) {
        if (int(m * 8 / can_go) == int((m - 1) * 8 / can_go)) continue
        printf "| %d | %.4f | %+.2f%% | %.2f |\n", experts - m, loss[m], 100 * (loss[m] / base - 1), error[m]
      }
    }' "$1"
}

case ${1:-} in
  --render) [[ $# == 2 ]] && render "$2" ;;
  "" | -*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  *) [[ $# -ge 3 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }; measure "$@" ;;
esac
