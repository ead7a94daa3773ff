# shellcheck shell=bash
# For scripts that train many models, to be sourced: a finished run is one JSON line of $results,
# known by the arguments it was called with. Several processes may work on the same results, and each
# may be killed at any instant: begun again, it goes on from the checkpoints.

set -euo pipefail
export LC_ALL=C

# number LINE KEY: a number of a flat JSON object.
number() { sed -n "s/.*\"$2\":\(-\?[0-9][0-9.eE+-]*\).*/\1/p" <<<"$1"; }

# usage: prints the comment that the script begins with, and leaves.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# For awk: field(name) is a field of the line, a flat JSON object; of a list, what is inside it.
json_field='
  function field(name,   text) {
    text = $0
    if (!match(text, "\"" name "\":(\"[^\"]*\"|\\[[^]]*\\]|[^,}]*)")) return ""
    text = substr(text, RSTART + length(name) + 3, RLENGTH - length(name) - 3)
    gsub(/["\[\]]/, "", text)
    return text == "null" ? "-" : text
  }'

# open_results FILE: what the calls below work on.
open_results() {
  results=$(realpath "$1")
  mkdir -p "$results.runs"
  touch "$results"
}

# claim WORK NAME: fails, and says so, if another process is at it. Held until the next claim, and by a
# run that outlives its script.
claim() {
  exec 8>>"$results.runs/$(cksum <<<"$1" | tr ' ' -).lock"
  flock -n 8 || { echo "$2: left to another worker" >&2; return 1; }
}

# finished ARGS: whether the results have this run.
finished() { grep -qF "\"args\":\"$1\"" "$results"; }

# take ARGS NAME: claims a run that the results lack.
take() { ! finished "$1" && claim "$1" "$2" && ! finished "$1"; }

# each VALUES NAME...: one NAME SPEC VALUE, for each of the words VALUES and each of $stacks (NAME=SPEC), or
# of those named.
each() {
  local values=$1 value stack name
  shift
  for name in "$@"; do
    grep -q "^$name=" < <(printf '%s\n' "${stacks[@]}") || {
      echo "no stack '$name', want one of ${stacks[*]%%=*}" >&2
      exit 2
    }
  done
  for value in $values; do
    for stack in "${stacks[@]}"; do
      name=${stack%%=*}
      [[ $# == 0 || " $* " == *" $name "* ]] || continue
      one "$name" "${stack#*=}" "$value"
    done
  done
}

# train ARGS OPTION...: trains with both, where ARGS names the run and may quote with '. Sets $folder, and
# $failure to the last line of a run that left the finite numbers; any other failure ends the sweep.
train() {
  local args=$1
  shift
  folder="$results.runs/$(cksum <<<"$args" | tr ' ' -)"
  failure=
  mkdir -p "$folder"
  if ! eval "\"\$braid\" train $args \"\$@\" --threads 1 --keep 1 --resume --out \"\$folder\"" \
    2>"$folder/log"; then
    failure=$(tail -n 1 "$folder/log")
    [[ $failure == *"want finite numbers"* ]] || { echo "$failure" >&2; exit 1; }
  fi
}

# record ARGS FIELDS: appends the line of the run that train has just done, and removes its folder. A
# kill in the middle of a line left one without an end, which is dropped.
record() {
  printf '{%s,"args":"%s"}\n' "$2" "$1" >"$folder/line"
  flock "$results.runs" sh -c '[ -z "$(tail -c 1 "$1")" ] || sed -i "\$d" "$1"; cat "$0" >>"$1"' \
    "$folder/line" "$results"
  rm -r "$folder"
}
