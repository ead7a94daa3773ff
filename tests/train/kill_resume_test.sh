#!/usr/bin/env bash
# A run that is killed (SIGKILL) at random instants and resumed each time must end with the bits of
# a run that nobody disturbed, and with every step in its metrics exactly once.
set -euo pipefail

braid=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
RANDOM=${2:-1}

steps=20
# Experts bring state of their own: a bias that moves with the loads, and noise; and two of them are
# merged now and then.
stack='swa:12,heads=2 swiglu:hidden=32 moe:4/2,hidden=16,select_bias=1,jitter=0.1,capacity=1'
words=(the braid of a river runs over under stone light and back)
for ((i = 0; i < 900; ++i)); do
  printf '%s ' "${words[RANDOM % ${#words[@]}]}"
  ((RANDOM % 40)) || printf '\n<|endoftext|>\n'
done > "$folder/text.txt"

train() {
  exec "$braid" train --stack "$stack" --width 32 --tokenizer bytes \
    --data "$folder/text.txt" --valid "$folder/text.txt" --eval-every 5 --length 32 --batch 4 \
    --steps "$steps" --warmup 4 --save-every 3 --merge-every 4 \
    --merge-threshold 2 --dtype f32 --out "$1" "${@:2}"
}

(train "$folder/whole" --threads 2)
kills=0
for ((attempt = 0; attempt < 25; ++attempt)); do
  (train "$folder/killed" --resume --threads $((1 + attempt % 2))) &
  child=$!
  sleep "0.$((RANDOM % 10))$((RANDOM % 10))"
  if kill -9 "$child" 2> /dev/null; then kills=$((kills + 1)); fi
  wait "$child" 2> /dev/null || true
done
(train "$folder/killed" --resume)
echo "killed $kills times"

cmp "$folder/whole/model.safetensors" "$folder/killed/model.safetensors"
cmp "$folder/whole/checkpoints/step-$steps/tensors.safetensors" \
  "$folder/killed/checkpoints/step-$steps/tensors.safetensors"
for run in whole killed; do
  # The line of a step carries its number and its training loss.
  seen=$(grep '"loss"' "$folder/$run/metrics.jsonl" | grep -o '"step":[0-9]*' | tr '\n' ' ')
  want=$(for ((k = 1; k <= steps; ++k)); do printf '"step":%d ' "$k"; done)
  [[ $seen == "$want" ]] || { echo "$run: steps in metrics.jsonl: $seen"; exit 1; }
done
# Without --resume an existing run is not touched.
if (train "$folder/killed") 2> "$folder/error"; then exit 1; else [[ $? == 2 ]]; fi
[[ $(wc -l < "$folder/error") == 1 ]]
grep -q -- --resume "$folder/error"
