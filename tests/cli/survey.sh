# Goal: the 2027 stack, from embedding to head, in one small run: it trains, is killed and goes on,
# runs, forks and saves; the larger presets can be planned with.
source "$(dirname "$0")/lib.sh"

for i in $(seq 400); do echo "line $i says that $((i * i % 97)) follows $((i * 7 % 31))."; done >text.txt
train=(train --preset survey2027:tiny --tokenizer bytes --data text.txt --length 128 --batch 2
  --steps 8 --save-every 2 --threads 1)
"$braid" "${train[@]}" --out whole >"$out" 2>"$err" || fail "train: $(tail -1 "$err")"
# Killed as soon as there is a checkpoint of step 2, and then of one from 4 on.
for step in 2 4; do
  "$braid" "${train[@]}" --resume --out killed >"$out" 2>"$err" &
  pid=$!
  for _ in $(seq 1200); do
    newest=$(find killed/checkpoints -name 'step-*' 2>/dev/null | sed -n 's/.*step-\([0-9]*\)$/\1/p' | sort -n | tail -1)
    [[ ${newest:-0} -lt $step ]] || break
    kill -0 $pid 2>/dev/null || break
    sleep 0.05
  done
  kill -9 $pid 2>/dev/null
  wait $pid 2>/dev/null
done
"$braid" "${train[@]}" --resume --out killed >"$out" 2>"$err" || fail "resume: $(tail -1 "$err")"
grep -q "resumed at [2-8]" "$err" || fail "resume says '$(head -1 "$err")'"
cmp -s whole/model.safetensors killed/model.safetensors || fail "killed and resumed, it is another model"
same "steps in the metrics" "$(grep -c '"load_peaks"' killed/metrics.jsonl)" 8

run=(run --model whole --temperature 0 --print-tokens)
tokens=$(head -c 300 text.txt | od -An -v -tu1 | tr -s ' \n' ',' | sed 's/^,//; s/,$//')
works "${run[@]}" --max-tokens 12 --tokens "$tokens"
want=$(<"$out")
works "${run[@]}" --max-tokens 0 --session s --tokens "$(cut -d, -f-131 <<<"$tokens")"
cp s fork
works "${run[@]}" --max-tokens 0 --session fork --tokens 1,2,3
works "${run[@]}" --max-tokens 12 --session s --tokens "$(cut -d, -f132- <<<"$tokens")"
same "cut and saved at 131" "$(<"$out")" "$want"

# Fast weights of another horizon are another model's.
sed 's/ttt:8192/ttt:4096/' whole/config.json >config.json
cp -r whole other && mv config.json other/config.json
refuses 1 "session of the model" run --model other --print-tokens --tokens 1 --session s

works inspect --preset survey2027:base
grep -q '^parameters: .* total, .* active a token$' "$out" || fail "inspect says '$(tail -4 "$out")'"
refuses 2 "for planning" "${train[@]/survey2027:tiny/survey2027:base}" --out none
refuses 2 "there is no preset 'survey2028'" inspect --preset survey2028
refuses 2 "--stack" "${train[@]}" --stack ttt:128 --out none
refuses 2 'horizon is "100", want a multiple of two mini-batches, 128' inspect --stack ttt:100 --width 64
finish
