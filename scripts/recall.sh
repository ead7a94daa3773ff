#!/usr/bin/env bash
# What small stacks can recall: multi-query associative recall (docs/tasks.md) over mixers, lengths
# and learning rates.
#
#   scripts/recall.sh BRAID RESULTS [MIXER...]   runs what RESULTS lacks, one JSON line a finished run
#   scripts/recall.sh --render RESULTS           writes the table of what was run to stdout
#   scripts/recall.sh --list                     the mixers it knows, NAME=SPEC
#
# MIXER is such a name, or NAME=SPEC itself. Runs are done cell by cell; a cell whose accuracy is
# reached at one rate is not run at the others. It may be killed at any instant and begun again, and
# several may work on the same results: each cell of a mixer is done by one of them. $RATES and $CELLS
# (LENGTH,PAIRS ...) are done instead of all rates and cells.
source "$(dirname "$0")/sweep.sh"

mixers=("attn=(attn)x2" "mamba2+swa=mamba2:state=64 swa:64" "mamba2=(mamba2:state=64)x2"
  "gated_delta=(gated_delta)x2" "rwkv7=(rwkv7)x2" "swa=(swa:32)x2" "linear_attn=(linear_attn)x2"
  "retnet=(retnet)x2" "lightning=(lightning)x2"
  "mamba1=(mamba1)x2" "s4d=(s4d)x2" "hyena=(hyena)x2" "linformer_causal=(linformer_causal)x2"
  "favor=(linear_attn:feature=favor)x2" "ttt_linear=(ttt_linear)x2" "lact=(lact:chunk=32)x2"
  "ttt_mlp=(ttt_mlp)x2" "mla=(mla)x2")
cells=(64,4 128,8 256,16) # length, pairs
longest="attn mamba2+swa mamba2 gated_delta rwkv7" # the mixers that the last cell is run for
rates=(3e-3 1e-3 1e-2)
stop=0.99
width=64 vocab=512
tokens_a_step=4096 tokens_max=25000000
common="--warmup 50 --min-lr 0 --weight-decay 0.1 --clip 1 --stop-accuracy $stop --eval-examples 500"

# reached NAME LENGTH PAIRS: whether a run of the cell has the accuracy to stop at.
reached() {
  awk -v cell="\"mixer\":\"$1\",\"length\":$2,\"pairs\":$3," -v stop=$stop '
    index($0, cell) && match($0, /"accuracy":[0-9.e-]*/) {
      if (substr($0, RSTART + 11, RLENGTH - 11) + 0 >= stop) found = 1
    }
    END { exit !found }' "$results"
}

# one NAME SPEC LENGTH PAIRS RATE: trains, and appends a line to the results.
one() {
  local name=$1 spec=$2 length=$3 pairs=$4 rate=$5
  local batch=$((tokens_a_step / length)) steps=$((tokens_max / tokens_a_step))
  local task=mqar:pairs=$pairs,len=$length,vocab=$vocab
  local args="--stack '$spec' --width $width --task $task --batch $batch --steps $steps --lr $rate"
  args+=" --eval-every $((steps / 60)) --save-every $((steps / 60)) $common"
  if finished "$args"; then return; fi
  echo "$name, length $length, $pairs pairs, rate $rate" >&2
  train "$args" --seed 1
  local best last state parameters
  best=$(sed -n 's/.*"valid_accuracy":\([0-9.e-]*\).*/\1/p' "$folder/metrics.jsonl" | sort -g | tail -n 1)
  last=$(grep '"tokens_per_s"' "$folder/metrics.jsonl" | tail -n 1)
  state=$("$braid" inspect --stack "$spec" --width $width --vocab $vocab --context "$length" |
    sed -n 's/^state a sequence: \(.*\) at .*/\1/p')
  parameters=$(sed -n 's/^\([^ ]*\) parameters,.*/\1/p' "$folder/log")
  local fields
  fields=$(printf '"mixer":"%s","length":%d,"pairs":%d,"lr":%s,"accuracy":%s,"tokens":%d,"seconds":%s' \
    "$name" "$length" "$pairs" "$rate" "${best:-0}" $(($(number "$last" step) * tokens_a_step)) \
    "$(number "$last" seconds)")
  fields+=",\"state\":\"$state\",\"parameters\":\"$parameters\""
  record "$args" "$fields,\"diverged\":$([[ -n $failure ]] && echo true || echo false)"
}

sweep() {
  braid=$1
  open_results "$2"
  shift 2
  local chosen=() mixer cell rate name
  for name in "$@"; do
    if [[ $name == *=* ]]; then chosen+=("$name"); continue; fi
    local found=
    for mixer in "${mixers[@]}"; do
      [[ ${mixer%%=*} == "$name" ]] && found=$mixer
    done
    [[ -n $found ]] || {
      echo "no mixer '$name', want NAME=SPEC or one of ${mixers[*]%%=*}" >&2
      exit 2
    }
    chosen+=("$found")
  done
  [[ ${#chosen[@]} -gt 0 ]] || chosen=("${mixers[@]}")
  for cell in ${CELLS:-${cells[@]}}; do
    for mixer in "${chosen[@]}"; do
      name=${mixer%%=*}
      [[ $cell != "${cells[-1]}" || " $longest " == *" $name "* ]] || continue
      claim "${mixer#*=} $cell" "$name, $cell" || continue
      for rate in ${RATES:-${rates[@]}}; do
        reached "$name" "${cell%,*}" "${cell#*,}" ||
          one "$name" "${mixer#*=}" "${cell%,*}" "${cell#*,}" "$rate"
      done
    done
  done
}

render() {
  cat <<'TEXT'
# Recall

How well stacks of two mixers, without feed-forward sublayers, answer multi-query associative recall (`mqar` of
[tasks.md](tasks.md)): Zoology's task and set-up (arXiv:2312.04927) at a size that a CPU trains. `scripts/recall.sh` did the
runs and wrote this page from their results; a cell is not run at further rates once it has the accuracy to stop at, and what has
not been run is left out.

Each cell is the best accuracy on held-out examples over the learning rates and evaluations, with its rate; the training tokens of
the quickest run to the accuracy to stop at (a dash where none reached it); and the state of one sequence at that length.

TEXT
  awk "$json_field"'
    function flag(args, name,   text) {
      text = args " "
      if (!match(text, "--" name " [^ ]* ")) return ""
      return substr(text, RSTART + length(name) + 3, RLENGTH - length(name) - 4)
    }
    {
      args = field("args")
      mixer = field("mixer"); spec = args
      sub(/^[^\x27]*\x27/, "", spec); sub(/\x27.*/, "", spec)
      row = mixer " | `" spec "`"; cell = field("length") ", " field("pairs")
      if (!(row in seen_row)) { seen_row[row] = 1; rows[++row_count] = row }
      if (!(cell in seen_cell)) {
        seen_cell[cell] = 1
        # Cells by length.
        for (c = ++cell_count; c > 1 && cells[c - 1] + 0 > cell + 0; --c) cells[c] = cells[c - 1]
        cells[c] = cell
      }
      at = row SUBSEP cell
      accuracy = field("accuracy") + 0
      if (!(at in best) || accuracy > best[at]) { best[at] = accuracy; best_rate[at] = field("lr") }
      if (accuracy >= flag(args, "stop-accuracy") + 0 && (!(at in tokens) || field("tokens") + 0 < tokens[at])) {
        tokens[at] = field("tokens") + 0
      }
      state[at] = field("state"); parameters[row] = field("parameters")
      rate = field("lr")
      if (!(rate in seen_rate)) { seen_rate[rate] = 1; ++rate_count; rates = rates (rates == "" ? "" : ", ") rate }
      ++count[at]
      call = args
      sub(/--stack \x27[^\x27]*\x27/, "--stack SPEC", call); sub(/--lr [^ ]*/, "--lr RATE", call)
      calls[cell] = call
      if (field("diverged") == "true") ++diverged
    }
    END {
      line = "| mixer | stack | parameters |"; rule = "|---|---|---:|"
      for (c = 1; c <= cell_count; ++c) {
        split(cells[c], part, ", ")
        line = line " " part[1] " tokens, " part[2] " pairs |"; rule = rule "---|"
      }
      print line; print rule
      for (r = 1; r <= row_count; ++r) {
        line = "| " rows[r] " | " parameters[rows[r]] " |"
        for (c = 1; c <= cell_count; ++c) {
          at = rows[r] SUBSEP cells[c]
          if (!(at in best)) { line = line " |"; continue }
          reached = at in tokens ? sprintf("%.1fM", tokens[at] / 1e6) : "-"
          line = line sprintf(" %.1f%% (rate %s); %s; %s", 100 * best[at], best_rate[at], reached, state[at])
          if (!(at in tokens) && count[at] < rate_count) line = line sprintf("; %d of %d rates", count[at], rate_count)
          line = line " |"
        }
        print line
      }
      print "\nLearning rates: " rates ". Runs that left the finite numbers: " diverged + 0 "."
      print "The calls, with the stack and the rate of each run; cosine schedule, AdamW with the betas that"
      print "`braid train --help` names, embedding tied to the head, float32, a new batch of examples every step:\n"
      print "```"
      for (c = 1; c <= cell_count; ++c) print "braid train " calls[cells[c]] " --seed 1"
      print "```"
    }' "$1"
}

case ${1:-} in
  --list) printf '%s\n' "${mixers[@]}" ;;
  --render) [[ $# == 2 ]] && render "$2" ;;
  "" | -*) usage ;;
  *) [[ $# -ge 2 ]] || usage; sweep "$@" ;;
esac
