#!/usr/bin/env bash
# Mixtures of experts beside dense stacks of the same active parameters, trained on text: the
# validation loss, and how evenly each way of balancing loads the experts.
#
#   scripts/experts.sh BRAID RESULTS TOKENIZER TRAIN VALID [NAME...]
#                                        runs what RESULTS lacks, one JSON line a finished run
#   scripts/experts.sh --render RESULTS  writes the tables of what was run to stdout
#   scripts/experts.sh --list            the stacks it knows, NAME=SPEC
#
# TRAIN and VALID are text or .tokens files. It may be killed at any instant: begun again, it goes on
# from the checkpoints. Several may work on the same results; each run is done by one of them.
source "$(dirname "$0")/sweep.sh"

# A dense stack's hidden width makes its feed-forward as large as the router and the k experts of a
# token: hidden = (E D + 3 k F D) / (3 D) = k F + E / 3.
attn_moe="moe:16/2,hidden=192" mamba_moe="moe:32/4,hidden=96"
# The bias moves by 0.001 a step as by default, or ten times as far.
slow="select_bias=1" fast="select_bias=1,balance=0.01"
stacks=("attn/dense=(attn swiglu:hidden=389)x4"
  "attn/bias=(attn $attn_moe,router=sigmoid,$slow)x4"
  "attn/fast=(attn $attn_moe,router=sigmoid,$fast)x4"
  "attn/none=(attn $attn_moe,router=sigmoid)x4"
  "attn/aux=(attn $attn_moe,router=sigmoid,aux=0.01)x4"
  "attn/softmax-bias=(attn $attn_moe,$slow)x4"
  "attn/softmax-fast=(attn $attn_moe,$fast)x4"
  "attn/softmax-none=(attn $attn_moe)x4"
  "attn/softmax-aux=(attn $attn_moe,aux=0.01)x4"
  "mamba2+swa/dense=(mamba2 swa:256 swiglu:hidden=395)x4"
  "mamba2+swa/bias=(mamba2 swa:256 $mamba_moe,router=sigmoid,$slow)x4"
  "mamba2+swa/fast=(mamba2 swa:256 $mamba_moe,router=sigmoid,$fast)x4"
  "mamba2+swa/none=(mamba2 swa:256 $mamba_moe,router=sigmoid)x4"
  "mamba2+swa/aux=(mamba2 swa:256 $mamba_moe,router=sigmoid,aux=0.01)x4")
lengths=(400 1000) # steps of a run
last=50 # the steps at the end over which loads are averaged
common="--width 128 --length 256 --batch 4 --lr 3e-3 --min-lr 3e-5 --warmup 50 --weight-decay 0.1"
common+=" --clip 1 --eval-tokens 32768 --seed 1"

# one NAME SPEC STEPS: trains, and appends a line to the results.
one() {
  local name=$1 spec=$2 steps=$3
  # The text of the call is what identifies a run.
  local schedule="$common --steps $steps --eval-every $steps" args
  args="--stack '$spec' $schedule"
  take "$args" "$name" || return 0
  echo "$name: $spec, $steps steps" >&2
  train "$args" --tokenizer "$tokenizer" --data "$train" --valid "$valid" --save-every 50
  [[ -z $failure ]] || { echo "$failure" >&2; exit 1; }
  local parameters
  parameters=$("$braid" inspect --model "$folder" |
    sed -n 's/^parameters: \(.*\) total, \(.*\) active a token$/"total":"\1","active":"\2"/p')
  # Of the last steps: the mean of max/mean over them, of all layers and of the worst one.
  local loads
  loads=$(grep '"load_peaks"' "$folder/metrics.jsonl" | tail -n $last |
    sed 's/.*"load_peaks":\[\([^]]*\)\].*/\1/' | awk -F, '
      { for (i = 1; i <= NF; ++i) { sum[i] += $i; all += $i } fields = NF }
      END {
        if (NR == 0) { print "null,\"worst_layer\":null"; exit }
        for (i = 1; i <= fields; ++i) if (sum[i] > worst) worst = sum[i]
        printf "%.3f,\"worst_layer\":%.3f", all / NR / fields, worst / NR
      }' || true)
  local loss train_loss
  loss=$(sed -n 's/.*"valid_loss":\([0-9.e-]*\).*/\1/p' "$folder/metrics.jsonl" | tail -n 1)
  train_loss=$(sed -n 's/.*"loss":\([0-9.e-]*\),.*"tokens_per_s".*/\1/p' "$folder/metrics.jsonl" |
    tail -n $last | awk '{ sum += $1 } END { printf "%.4f", sum / NR }')
  record "$args" "$(printf '"name":"%s","valid_loss":%.4f,"train_loss":%s,"load":%s,%s' \
    "$name" "$loss" "$train_loss" "$loads" "$parameters")"
}

sweep() {
  braid=$1 tokenizer=$3 train=$4 valid=$5
  open_results "$2"
  shift 5
  each "${lengths[*]}" "$@"
}

render() {
  awk "$json_field"'
    BEGIN {
      print "| steps | stack | validation loss | training loss | parameters | active a token | load, max/mean | worst layer |"
      print "|---:|---|---:|---:|---:|---:|---:|---:|"
    }
    {
      args = field("args"); spec = args; call = args
      sub(/^[^\x27]*\x27/, "", spec); sub(/\x27.*/, "", spec)
      match(args, /--steps [0-9]+/); steps = substr(args, RSTART + 8, RLENGTH - 8)
      sub(/--stack \x27[^\x27]*\x27/, "--stack SPEC", call)
      sub(/--steps [0-9]+ --eval-every [0-9]+/, "--steps STEPS --eval-every STEPS", call)
      if (!(call in seen)) { seen[call] = 1; calls[++count] = call }
      row[NR] = sprintf("| %d | `%s` | %s | %s | %s | %s | %s | %s |", steps, spec, field("valid_loss"),
                        field("train_loss"), field("total"), field("active"), field("load"), field("worst_layer"))
      split(field("name"), part, "/")
      # Stacks in the order of their names, ways of balancing in that of the script.
      key[NR] = part[1] " " sprintf("%9d", steps) " " index("dense bias fast aux none softmax-bias softmax-fast softmax-aux softmax-none", part[2]) + 100
    }
    END {
      for (i = 1; i <= NR; ++i) {
        for (j = i; j > 1 && key[order[j - 1]] > key[i]; --j) order[j] = order[j - 1]
        order[j] = i
      }
      for (i = 1; i <= NR; ++i) print row[order[i]]
      print "\nThe calls, with the stack and the steps of each run:\n\n```"
      for (c = 1; c <= count; ++c) print "braid train " calls[c] " --tokenizer TOKENIZER --data TRAIN --valid VALID --threads 1"
      print "```"
    }' "$1"
}

case ${1:-} in
  --list) printf '%s\n' "${stacks[@]}" ;;
  --render) [[ $# == 2 ]] || usage; render "$2" ;;
  "" | -*) usage ;;
  *) [[ $# -ge 5 ]] || usage; sweep "$@" ;;
esac
