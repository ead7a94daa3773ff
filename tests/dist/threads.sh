#!/usr/bin/env bash
# Experts spread over threads: the bits of one process. usage: threads.sh BRAID
source "$(dirname "$0")/lib.sh"
threads() { "$braid" "$@" --workers 4; }
same_logits threads threads
same_eval threads threads

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
