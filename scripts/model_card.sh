#!/bin/sh
# Writes the model card of a trained model to stdout: scripts/model_card.sh BRAID RUN_DIR RECIPE VALID_TEXT
# Every figure comes from the run's own metrics or is measured now; the samples are the first that came.
set -eu
braid=$1 run=$2 recipe=$3 valid=$4
last=$(grep '"tokens_per_s"' "$run/metrics.jsonl" | tail -n 1)
field() { printf '%s' "$last" | sed -n "s/.*\"$1\":\([^,}]*\).*/\1/p"; }

cat <<EOF
# young-readers

A small English language model that ships with the engine, so that \`make run\` has something to say. It continues
simple prose in the manner of old children's books; it knows nothing and should be asked nothing.

Training text: 691 works of children's and simple fiction from Project Gutenberg, in the public domain in the USA.
Licence of the weights: Apache-2.0, as the engine.

## How it was made
\`braid train --config $recipe\`, with a byte-level BPE tokenizer from \`braid tokenizer train\`, on two CPU cores:
$(field step) steps in $(field seconds | cut -d. -f1) seconds, last loss $(field loss | cut -c1-6) nats a token.

\`\`\`
$("$braid" inspect --model "$run")
\`\`\`

## Validation
\`braid eval\` on 12 works held out:

\`\`\`
$("$braid" eval --model "$run" --data "$valid")
\`\`\`

## Samples, as they came
\`--temperature 0.8 --top-p 0.95 --max-tokens 120\`, seeds 0, 1, 2.
EOF
seed=0
for prompt in "Once upon a time, there was a little" "The captain looked at the sea and said," \
  "\"What is it?\" asked Mary."; do
  printf '\n> %s' "$prompt"
  "$braid" run --model "$run" --prompt "$prompt" --temperature 0.8 --top-p 0.95 --max-tokens 120 \
    --seed $seed | sed 's/^/> /; 1s/^> //'
  seed=$((seed + 1))
done
