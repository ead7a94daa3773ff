#!/usr/bin/env bash
# Experts spread over four processes: the bits of one; and a worker that dies ends the run soon,
# with an error, and leaves no output. usage: mpi.sh MPIRUN BRAID
set -- "$2" "$1"
source "$(dirname "$0")/lib.sh"
same_logits mpi mpi
same_eval mpi mpi

# One token a step: long enough to be killed in.
many=$(for ((i = 0; i < 60000; ++i)); do printf '%d,' $((i % 200)); done)
echo "${many%,}" >many
printf '1,%.0s' $(seq 60000) | sed 's/,$//' >ones
mpi logits --model model --tokens @many --pieces @ones --out killed.safetensors >said 2>&1 &
run=$!
# children PID...: processes that one of these started.
children() {
  local stat pid rest
  for stat in /proc/[0-9]*/stat; do
    read -r pid rest <"$stat" || continue
    rest=${rest##*) }  # after the name: state, parent
    read -r _ rest _ <<<"$rest"
    [[ " $* " == *" $rest "* ]] && echo "$pid"
  done 2>/dev/null || true
}
# mpirun is the shell's child, or the shell itself; its children are the ranks.
ranks=()
for ((tries = 0; tries < 100; ++tries)); do
  mapfile -t ranks < <(children "$run")
  ((${#ranks[@]} == 1)) && mapfile -t ranks < <(children "${ranks[0]}")
  ((${#ranks[@]} >= 4)) && break
  sleep 0.1
done
((${#ranks[@]} >= 4)) || die "found ${#ranks[@]} ranks: $(head -3 said)"
sleep 1
kill -9 "${ranks[2]}"
start=$SECONDS code=0
wait "$run" || code=$?
[[ $code != 0 ]] || die 'a run whose worker died ended well'
((SECONDS - start < 30)) || die "the run lived on for $((SECONDS - start)) s"
grep -qi 'signal 9' said || die "says $(head -5 said)"
[[ ! -e killed.safetensors ]] || die 'a run whose worker died wrote its output'
[[ -z $(find . -name '*.tmp*' -o -name '*.partial*') ]] || die 'temporary files are left'

# A rank that fails says so, once, and ends the others.
code=0
mpi logits --model model --tokens 1,999999 --out failed.safetensors >said 2>&1 || code=$?
[[ $code != 0 && ! -e failed.safetensors ]] || die "a failed run: code $code"
grep -q '^braid: rank 0: stack: token 999999' said || die "says $(head -5 said)"
