#!/usr/bin/env bash
# Test-time training on text: its mixers beside others, and what the correction over the last tokens
# (ttt:H) changes with the tokens read before, against the same stack without it and with its inner
# learning rate at zero.
#
#   scripts/ttt.sh BRAID RESULTS TRAIN VALID [NAME...]
#                                     runs what RESULTS lacks, one JSON line a finished run
#   scripts/ttt.sh --render RESULTS [GROUP...]
#                                     writes a table of each group of what was run to stdout
#   scripts/ttt.sh --plot RESULTS     writes the loss against the position, as SVG
#   scripts/ttt.sh --list             the stacks it knows, NAME=SPEC
#
# TRAIN and VALID are text, read as bytes. $SEEDS (default "0 1"). It may be killed at any instant and
# begun again, and several may work on the same results.
source "$(dirname "$0")/sweep.sh"

window="(short_conv swa:16 swiglu)x2" hybrid="(mamba2:state=64,head=32 swa:16 swiglu)x2"
correction="ttt:1024,mini_batch=16,lr=1" frozen="ttt:1024,mini_batch=16,lr=0"
stacks=("window/none=$window" "window/frozen=$window $frozen" "window/ttt=$window $correction"
  "variants/slow=$window ttt:1024,mini_batch=64,lr=0.1" "variants/fast=$window ttt:1024,mini_batch=64,lr=1"
  "hybrid/none=$hybrid" "hybrid/frozen=$hybrid $frozen" "hybrid/ttt=$hybrid $correction"
  "mixers/attn=(attn swiglu)x2" "mixers/mamba2=(mamba2:state=64,head=32 swiglu)x2"
  "mixers/ttt_linear=(ttt_linear swiglu)x2")
common="--width 64 --length 2048 --batch 4 --steps 1200 --warmup 50 --lr 3e-3 --min-lr 3e-5"
common+=" --weight-decay 0.1 --clip 1"
eval_window=512
evaluation="--length 8192 --window $eval_window --max-tokens 1000000"

# one NAME SPEC SEED: trains, evaluates by position, and appends a line to the results.
one() {
  local name=$1 spec=$2 seed=$3
  local args="--stack '$spec' $common --seed $seed"
  take "$args" "$name" || return 0
  echo "$name, seed $seed: $spec" >&2
  train "$args" --tokenizer bytes --data "$train" --save-every 100 --eval-every 1000000
  if [[ -n $failure ]]; then
    record "$args" "\"name\":\"$name\",\"seed\":$seed,\"diverged\":true"
    return
  fi
  local fields
  # shellcheck disable=SC2086
  fields=$("$braid" eval --model "$folder" --data "$valid" $evaluation --threads 1 | awk '
      /^positions/ { by = by (by == "" ? "" : ",") $4; next }
      { value[$1] = $2 }
      END { printf "\"loss\":%s,\"bits_per_byte\":%s,\"by_position\":[%s]", value["loss"], value["bits_per_byte"], by }')
  local parameters last
  parameters=$(sed -n 's/^\([^ ]*\) parameters,.*/\1/p' "$folder/log")
  last=$(grep '"tokens_per_s"' "$folder/metrics.jsonl" | tail -n 1)
  record "$args" "\"name\":\"$name\",\"seed\":$seed,\"spec\":\"$spec\",\"parameters\":\"$parameters\",\"seconds\":$(
    number "$last" seconds),$fields"
}

sweep() {
  braid=$1 train=$3 valid=$4
  open_results "$2"
  shift 4
  each "${SEEDS:-0 1}" "$@"
}

# Means over seeds, for the two functions below: loss[name], by[name, i], count[name], names in order.
read_results=$json_field'
  field("diverged") == "true" { ++diverged; next }
  {
    name = field("name")
    split(name, part, "/")
    if (!(part[1] in arms)) groups[++group_count] = part[1]
    if (!(name in count)) { arms[part[1]] = arms[part[1]] " " part[2] }
    n = ++count[name]
    nats = field("loss") + 0
    loss[name] += (nats - loss[name]) / n
    bits[name] += (field("bits_per_byte") - bits[name]) / n
    seconds[name] += (field("seconds") - seconds[name]) / n
    if (n == 1 || nats < least[name]) least[name] = nats
    if (n == 1 || nats > most[name]) most[name] = nats
    windows = split(field("by_position"), at, ",")
    for (i = 1; i <= windows; ++i) by[name, i] += (at[i] - by[name, i]) / n
    spec[name] = field("spec"); parameters[name] = field("parameters")
    call = field("args")
    sub(/--stack \x27[^\x27]*\x27/, "--stack SPEC", call); sub(/--seed [0-9]+/, "--seed SEED", call)
  }'

render() {
  awk -v window=$eval_window -v evaluation="$evaluation" -v wanted="$2" "$read_results"'
    function mean(name, from, to,   i, sum) {
      for (i = from; i <= to; ++i) sum += by[name, i]
      return sum / (to - from + 1)
    }
    END {
      for (g = 1; g <= group_count; ++g) {
        if (wanted != "" && !index(" " wanted " ", " " groups[g] " ")) continue
        k = split(arms[groups[g]], arm, " ")
        printf "%s| stack | parameters | seeds | loss | least, most | bits a byte | seconds |", (tables++ ? "\n" : "")
        edges = split("1 2 4 8 16", edge, " ")  # windows that a column ends with
        for (e = 1; e <= edges && edge[e] <= windows; ++e) printf " to %d |", edge[e] * window
        print ""
        printf "|---|---:|---:|---:|---:|---:|---:|"
        for (e = 1; e <= edges && edge[e] <= windows; ++e) printf "---:|"
        print ""
        for (i = 1; i <= k; ++i) {
          name = groups[g] "/" arm[i]
          printf "| `%s` | %s | %d | %.4f | %.4f, %.4f | %.4f | %.0f |", spec[name], parameters[name], count[name],
                 loss[name], least[name], most[name], bits[name], seconds[name]
          from = 1
          for (e = 1; e <= edges && edge[e] <= windows; ++e) { printf " %.4f |", mean(name, from, edge[e]); from = edge[e] + 1 }
          print ""
        }
      }
      print "\nRuns that left the finite numbers: " diverged + 0 ". The calls, with the stack and the seed of each run:\n\n```"
      print "braid train " call " --tokenizer bytes --data TRAIN --threads 1 --out DIR"
      print "braid eval --model DIR --data VALID " evaluation
      print "```"
    }' "$1"
}

# A column of two panels for each group: the loss at each position, and what each arm changes of it.
plot() {
  awk -v window=$eval_window "$read_results"'
    function x_of(i) { return left + (i - 0.5) / windows * wide }
    function y_of(v) { return top + (high - v) / (high - low) * tall }
    function write_text(x, y, anchor, words) {
      printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, words
    }
    function value(name, i) { return by[name, i] - (panel == 2 ? by[group "/none", i] : 0) }
    # Axes, grid and a line for each arm.
    function draw(   i, a, v, step, points) {
      low = 1e9; high = -1e9
      for (a = 1; a <= k; ++a) for (i = 1; i <= windows; ++i) {
        v = value(group "/" arm[a], i)
        if (v < low) low = v
        if (v > high) high = v
      }
      if (high - low < 1e-4) high = low + 1e-4
      step = 10 ^ int(log((high - low) / 4) / log(10) - 1)
      while ((high - low) / step > 6) step *= (high - low) / (step * 2) > 6 ? 2 : 2.5
      low = step * int(low / step - (low < 0 ? 1 : 0)); high = step * (int(high / step) + (high > 0 ? 1 : 0))
      for (v = low; v <= high + step / 2; v += step) {
        printf "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", left, left + wide, y_of(v), y_of(v)
        write_text(left - 6, y_of(v) + 4, "end", sprintf("%.3f", v))
      }
      for (i = 0; i <= windows; i += windows / 4) {
        write_text(left + i / windows * wide, top + tall + 16, "middle", i * window)
      }
      for (a = 1; a <= k; ++a) {
        points = ""
        for (i = 1; i <= windows; ++i) points = points sprintf("%.1f,%.1f ", x_of(i), y_of(value(group "/" arm[a], i)))
        printf "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" points=\"%s\"/>\n", colour[arm[a]], points
      }
    }
    END {
      colour["none"] = "#555"; colour["frozen"] = "#0072b2"; colour["ttt"] = "#d55e00"
      label["none"] = "without"; label["frozen"] = "inner learning rate 0"; label["ttt"] = "with the correction"
      wide = 300; tall = 180
      for (g = 1; g <= group_count; ++g) if (groups[g] != "mixers" && (groups[g] "/none") in count) shown[++columns] = groups[g]
      printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d 530\" font-family=\"sans-serif\" font-size=\"11\">\n", columns * 380 + 20
      print "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
      for (c = 1; c <= columns; ++c) {
        group = shown[c]; k = split(arms[group], arm, " ")
        left = 66 + (c - 1) * 380
        for (panel = 1; panel <= 2; ++panel) {
          top = panel == 1 ? 50 : 290
          if (panel == 1) write_text(left, top - 26, "start", group ": " spec[group "/none"])
          write_text(left, top - 10, "start", panel == 1 ? "nats a byte" : "difference to the stack without, nats a byte")
          draw()
        }
        write_text(left + wide / 2, 505, "middle", "bytes read before")
      }
      for (a = 1; a <= split("none frozen ttt", order, " "); ++a) {
        printf "<line x1=\"%d\" x2=\"%d\" y1=\"520\" y2=\"520\" stroke=\"%s\" stroke-width=\"3\"/>\n", 66 + (a - 1) * 170, 90 + (a - 1) * 170, colour[order[a]]
        write_text(96 + (a - 1) * 170, 524, "start", label[order[a]])
      }
      print "</svg>"
    }' "$1"
}

case ${1:-} in
  --list) printf '%s\n' "${stacks[@]}" ;;
  --render) [[ $# -ge 2 ]] || usage; render "$2" "${*:3}" ;;
  --plot) [[ $# == 2 ]] || usage; plot "$2" ;;
  "" | -*) usage ;;
  *) [[ $# -ge 4 ]] || usage; sweep "$@" ;;
esac
