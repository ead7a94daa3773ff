# Sourced by the scripts here, which take BRAID [MPIRUN]: a scratch directory with a small model of
# experts and text that it reads.
set -euo pipefail
export LC_ALL=C
braid=$1
mpirun=${2:-}
work=$(mktemp -d "${TMPDIR:-/tmp}/braid-dist-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

die() {
  echo "FAIL: $*"
  exit 1
}
mpi() { "$mpirun" --oversubscribe --allow-run-as-root -n 4 "$braid" "$@" --mpi --threads 1 --peer-timeout 60; }

words=(the braid of a river runs over under stone light and back)
RANDOM=7
for ((i = 0; i < 1500; ++i)); do
  printf '%s ' "${words[RANDOM % ${#words[@]}]}"
  ((RANDOM % 30)) || printf '\n<|endoftext|>\n'
done >text.txt
"$braid" train --stack '(swa:16,heads=2 moe:8/2,hidden=32)x2' --width 32 --tokenizer bytes \
  --data text.txt --length 64 --batch 4 --steps 3 --warmup 1 --dtype f32 --threads 1 --out model \
  2>/dev/null
tokens=$(for ((i = 0; i < 60; ++i)); do printf '%d,' $((RANDOM % 200)); done)
tokens=${tokens%,}

# The same bits from one process and from `$@ logits ...`.
same_logits() {
  local name=$1
  shift
  "$braid" logits --model model --tokens "$tokens" --out whole.safetensors --threads 1
  "$@" logits --model model --tokens "$tokens" --out "$name.safetensors" >"$name.txt"
  cmp whole.safetensors "$name.safetensors" || die "$name: other logits than one process"
  "$@" logits --model model --tokens "$tokens" --pieces 10,1,1,1,1,1,40,5 --out "$name-pieces.safetensors" \
    --replan-every 2 --experts-per-worker 4 --move-megabytes 0 >"$name-pieces.txt"
  cmp whole.safetensors "$name-pieces.safetensors" || die "$name: other logits in pieces"
  grep -Eq '[1-9][0-9]* experts moved' "$name-pieces.txt" || die "$name: nothing moved"
}
# The same loss from one process and from `$@ eval ...`, and a report.
same_eval() {
  local name=$1
  shift
  "$braid" eval --model model --data text.txt --length 64 --threads 1 >whole.txt
  "$@" eval --model model --data text.txt --length 64 --replan-every 1 --experts-per-worker 3 \
    --move-megabytes 0 >"$name.txt"
  cmp whole.txt <(head -n "$(wc -l <whole.txt)" "$name.txt") || die "$name: another evaluation"
  grep -q '^workers 4 over' "$name.txt" || die "$name: no report"
  [[ $(grep -c '^expert layer' "$name.txt") == 2 ]] || die "$name: layers of the report"
  [[ $(grep -c '^worker .* expert bytes resident' "$name.txt") == 4 ]] || die "$name: bytes"
}
