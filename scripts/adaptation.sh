#!/usr/bin/env bash
# What --adapt changes: the loss of models on texts, with and without, by position.
#
#   scripts/adaptation.sh BRAID MODEL=TEXT:LENGTH...   writes docs/adaptation.md to stdout
#
# TEXT is read in sequences of LENGTH tokens, $TOKENS (default 100000) of them evenly spread.
set -euo pipefail
export LC_ALL=C
[[ $# -ge 2 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
braid=$1
shift
settings=("" "--adapt" "--adapt --adapt-rate 0.5" "--adapt --adapt-rate 2" "--adapt --adapt-horizon 1024"
  "--adapt --adapt-horizon 16384" "--adapt --adapt-rank 16")

cat <<'TEXT'
# Learning while reading

`braid run --adapt` and `braid eval --adapt` let any model, however it was trained, follow the text it reads: a low-rank
correction of the last hidden rows is fitted online to predict the next token, by gradient descent in closed form with decay
towards zero. `braid/model/adaptation.h` has the formulas. It is off unless asked for, and then nothing else changes; its fast
weights are part of the session's state, so they fork, save and roll back with it, and a saved session says under which options
it learned. `scripts/adaptation.sh` measured and wrote this page.

- Cost: a second product with the head for every token, and the head's own product for every token of a prompt, of which
  otherwise only the last needs it.
- `--adapt-rate` (1): nats that a token met gains in like places. `--adapt-horizon` (4096): tokens after which what was learned
  has faded to 1/e. `--adapt-rank` (64, or the width): directions in which places can differ. `--adapt-batch` (16): tokens an
  update.

Loss in nats a token, over all targets and by their position in the sequence. A text is cut into sequences of the length named;
a document shorter than that is a sequence by itself. Every sequence starts from nothing learned.
TEXT

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
