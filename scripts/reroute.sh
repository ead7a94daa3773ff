#!/usr/bin/env bash
# Plain routing against "route, then recompute" at equal active compute, on text.
#
#   scripts/reroute.sh BRAID TOKENIZER TRAIN VALID DIR   runs what DIR lacks, then writes the table
#
# One thread. $SEEDS (default "0 1"), $STEPS (320) of 1024 tokens, $ONLY (names of variants).
set -euo pipefail
export LC_ALL=C
[[ $# -eq 5 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
braid=$1 tokenizer=$2 train=$3 valid=$4 dir=$5
mkdir -p "$dir"

# A context of 32 costs 2 * 32 * (128 + 16) operations a token: six columns of two gated experts of
# width 128, 2 * 2 * 3 * 128 each.
declare -A ffn=(
  [plain]="moe:16/2,hidden=198"
  [never]="moe:16/2,hidden=192,reroute=0"  # the same first parameters, the second look unused
  [reroute-0.02]="moe:16/2,hidden=192,reroute=0.02"
  [reroute-0.1]="moe:16/2,hidden=192,reroute=0.1"
)
order=(plain never reroute-0.02 reroute-0.1)

for seed in ${SEEDS:-0 1}; do
  for name in ${ONLY:-${order[@]}}; do
    run=$dir/$name-$seed
    [[ ! -e $run.done ]] || continue
    TIMEFORMAT=%U
    { time "$braid" train --stack "(attn:heads=4 ${ffn[$name]},aux=0.01)x4" --width 128 \
      --tokenizer "$tokenizer" --data "$train" --valid "$valid" --eval-tokens 65536 --length 256 \
      --batch 4 --steps "${STEPS:-320}" --warmup 32 --lr 3e-3 --min-lr 3e-4 --beta2 0.98 \
      --seed "$seed" --threads 1 --save-every 100000 --eval-every 100000 --out "$run" \
      > "$run.log" 2>&1; } 2> "$run.seconds"
    touch "$run.done"
  done
done

# of FIELD FILE: its values, one a line.
of() { { grep -o "\"$1\":[0-9.e+-]*" "$2" || true; } | cut -d: -f2; }

printf '| ffn | seed | loss | perplexity | bits a byte | rerouted, first and last tenth | CPU s |\n'
printf '|---|---:|---:|---:|---:|---:|---:|\n'
for name in "${order[@]}"; do
  for seed in ${SEEDS:-0 1}; do
    run=$dir/$name-$seed metrics=$dir/$name-$seed/metrics.jsonl
    [[ -e $run.done ]] || continue
    share=$(of rerouted "$metrics" | awk '{ v[NR] = 100 * $1 } END {
      if (!NR) { print "-"; exit }
      n = int(NR / 10) > 0 ? int(NR / 10) : 1
      for (i = 1; i <= n; ++i) { a += v[i]; b += v[NR + 1 - i] }
      printf "%.0f%%, %.0f%%", a / n, b / n }')
    printf '| `%s` | %d | %.4f | %.2f | %.4f | %s | %.0f |\n' "${ffn[$name]}" "$seed" \
      "$(of valid_loss "$metrics" | tail -n 1)" "$(of valid_perplexity "$metrics" | tail -n 1)" \
      "$(of valid_bits_per_byte "$metrics" | tail -n 1)" "$share" "$(tail -n 1 "$run.seconds")"
  done
done
