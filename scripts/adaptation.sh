#!/usr/bin/env bash
# What --adapt changes: the loss of models on texts, with and without, by position.
#
#   scripts/adaptation.sh BRAID MODEL=TEXT:LENGTH...   writes docs/adaptation.md's tables to stdout
#
# TEXT is read in sequences of LENGTH tokens, $TOKENS (default 100000) of them evenly spread.
set -euo pipefail
export LC_ALL=C
[[ $# -ge 2 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
braid=$1
shift
settings=("" "--adapt" "--adapt --adapt-rate 0.5" "--adapt --adapt-rate 2" "--adapt --adapt-horizon 1024"
  "--adapt --adapt-horizon 16384" "--adapt --adapt-rank 16")

for pair in "$@"; do
  model=${pair%%=*} text=${pair#*=}
  length=${text##*:} text=${text%:*}
  window=$((length / 4))
  printf '\n%s, on %s in sequences of %d tokens:\n\n' "$(basename "$model")" "$(basename "$text")" "$length"
  printf '| setting | loss | bits a byte | accuracy |'
  for i in 0 1 2 3; do printf ' from %d |' $((i * window)); done
  printf '\n|---|---:|---:|---:|---:|---:|---:|---:|\n'
  for setting in "${settings[@]}"; do
    # shellcheck disable=SC2086
    "$braid" eval --model "$model" --data "$text" --length "$length" --max-tokens "${TOKENS:-100000}" \
      --window "$window" $setting 2>/dev/null |
      awk -v name="${setting:-none}" '
        /^positions/ { by = by sprintf(" %.4f |", $4); next }
        { value[$1] = $2 }
        END {
          printf "| `%s` | %.4f | %.4f | %.2f%% |%s\n", name, value["loss"], value["bits_per_byte"],
                 100 * value["accuracy"], by
        }'
  done
done
