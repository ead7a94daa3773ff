#!/usr/bin/env bash
# Experts spread over threads: the bits of one process. usage: threads.sh BRAID SOURCE_DIR
golden=$2/tests/golden
set -- "$1"
source "$(dirname "$0")/lib.sh"
threads() { "$braid" "$@" --workers 4; }
same_logits threads threads
same_eval threads threads

# Every family of experts, with plans and moves in between.
families=0
for folder in "$golden"/*/; do
  [[ -e $folder/model.safetensors ]] || continue
  grep -aq 'experts' <(head -c 65536 "$folder/model.safetensors") || continue
  ids=3,5,7,11,13,17,19,23,29,31,2,3,5
  "$braid" logits --model "$folder" --tokens $ids --out whole.safetensors --threads 1
  "$braid" logits --model "$folder" --tokens $ids --pieces 4,1,1,1,1,1,4 --workers 3 \
    --replan-every 2 --out spread.safetensors >spread.txt
  cmp whole.safetensors spread.safetensors || die "$folder: other logits than one process"
  families=$((families + 1))
done
((families >= 5)) || die "only $families golden models have experts"

refused() {
  local want=$1 code=0
  shift
  "$braid" "$@" >said 2>error || code=$?
  [[ $code == 2 ]] || die "$*: code $code: $(head -1 error)"
  grep -q -- "$want" error || die "$*: says $(head -1 error)"
}
refused 'room for 8 experts' logits --model model --tokens 1,2 --out no.safetensors --workers 2 --experts-per-worker 3
refused 'no ids' logits --model model --tokens '' --out no.safetensors --workers 2
refused 'excludes' logits --model model --tokens 1,2 --out no.safetensors --workers 2 --mpi
refused 'want --workers or --mpi' eval --model model --data text.txt --replan-every 3
[[ ! -e no.safetensors ]] || die 'a refused call wrote its file'
[[ -z $(find . -name '*.tmp*' -o -name '*.partial*') ]] || die 'temporary files are left'
