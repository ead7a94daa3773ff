#!/usr/bin/env bash
# How evenly re-planning spreads the experts of a skewed model: trains a small mixture of experts
# without any balancing, evaluates text of two kinds over workers, and prints a table in Markdown.
# usage: expert_parallel.sh BRAID TRAIN_TEXT OTHER_TEXT [FOLDER]
# FOLDER (default a temporary one) keeps the model, which is not trained again.
set -euo pipefail
export LC_ALL=C
braid=$1 train=$2 other=$3
folder=${4:-}
if [[ -z $folder ]]; then
  folder=$(mktemp -d "${TMPDIR:-/tmp}/braid-experts-XXXXXX")
  trap 'rm -rf "$folder"' EXIT
fi
if [[ ! -e $folder/model/model.safetensors ]]; then
  "$braid" train --stack '(swa:64,heads=4 moe:32/2,hidden=64)x4' --width 128 --tokenizer bytes \
    --data "$train" --length 128 --batch 8 --steps 400 --warmup 40 --lr 2e-3 --dtype f32 \
    --out "$folder/model" 2>"$folder/train.log"
fi

# table_row TEXT KIND WORKERS COPIES: evaluates and prints a line of the table.
table_row() {
  local said="$folder/said" whole="$folder/whole"
  local run=(eval --model "$folder/model" --data "$1" --length 128 --batch-tokens 512 --max-tokens 65536)
  "$braid" "${run[@]}" >"$whole"
  "$braid" "${run[@]}" --workers "$3" --experts-per-worker "$4" --replan-every 4 >"$said"
  local same=no
  cmp -s "$whole" <(head -n "$(wc -l <"$whole")" "$said") && same=yes
  awk -v kind="$2" -v workers="$3" -v copies="$4" -v same="$same" '
    /^workers/ { steps = $5; moved = $7 }
    /^expert layer/ {
      before = before sep sprintf("%.2f", $6); after = after sep sprintf("%.2f", $8); sep = ", "
    }
    /^worker .* resident/ { if ($3 > most) most = $3; all = $5 }
    /^loss/ { loss = $2 }
    END {
      printf "| %s | %d | %d | %s | %s | %d | %.0f%% | %s | %s |\n", kind, workers, copies, before,
        after, moved, 100 * most / all, loss, same
    }' "$said"
}

echo '| text | workers | copies each | max/mean before, by layer | after | experts moved | expert bytes of a worker | loss | as one process |'
echo '|---|---|---|---|---|---|---|---|---|'
for copies in 8 10 12; do table_row "$train" 'as trained on' 4 "$copies"; done
for copies in 8 10 12; do table_row "$other" 'of another kind' 4 "$copies"; done
table_row "$other" 'of another kind' 8 6
