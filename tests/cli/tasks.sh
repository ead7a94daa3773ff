# Goal: training and evaluation on synthetic tasks: no tokenizer, no data, a model that loads again.
source "$(dirname "$0")/lib.sh"
train=(train --stack 'mamba2:state=4,head=8 swa:8' --width 16 --batch 4 --threads 1)
task=mqar:pairs=2,len=16,vocab=32

"$braid" "${train[@]}" --task $task --eval-task mqar:pairs=2,len=40,vocab=32 --eval-examples 20 \
  --eval-every 2 --steps 5 --out made >"$out" 2>"$err" || fail "train: $(tail -1 "$err")"
grep -q "20 examples of $task" "$err" || fail "train says '$(head -1 "$err")'"
grep -q "step 5: $task: accuracy" "$err" || fail "train ends with '$(tail -2 "$err")'"
same "evaluations" "$(grep -c '"valid_accuracy"' made/metrics.jsonl)" 6
same "steps" "$(grep -c '"accuracy"' made/metrics.jsonl)" 5
[[ ! -e made/tokenizer.json ]] || fail "a model without a tokenizer has tokenizer.json"

# What was made loads again; text needs a tokenizer.
works eval --model made --task $task --examples 20
line=$(grep "\"set\":\"$task\",\"step\":5" made/metrics.jsonl)
accuracy=$(sed -E 's/.*"valid_accuracy":([0-9.]+).*/\1/' <<<"$line")
same "eval repeats the last evaluation of training" \
  "$(head -1 "$out")" "accuracy $(printf '%.6f' "$accuracy")"
same "what eval prints" "$(cut -d' ' -f1 "$out" | paste -sd,)" "accuracy,loss,answers,examples"
cp "$out" first
works eval --model made --task $task --examples 20 --threads 2
cmp -s "$out" first || fail "eval depends on the number of threads"
works eval --model made --task mqar:pairs=3,len=100,vocab=20 --examples 3
for other in selective_copy:tokens=3,len=10,vocab=8 induction:len=9,vocab=32 parity:len=7 \
  modular:group=s4,len=7 needle:len=12,vocab=32; do
  works eval --model made --task $other --examples 3
done
works run --model made --tokens 1,2,3 --max-tokens 4 --temperature 0 --print-tokens
works logits --model made --tokens 1,2,3 --out l.safetensors
refuses 1 "tokenizer" run --model made --prompt hello
refuses 1 "tokenizer" run --model made --tokens 1,2,3 --max-tokens 4
echo text >text.txt
refuses 1 "tokenizer" eval --model made --data text.txt

# A run goes on, and only the same run.
"$braid" "${train[@]}" --task $task --steps 7 --resume --out made >"$out" 2>"$err" || fail "resume"
grep -q "resumed at 5" "$err" || fail "resume says '$(head -1 "$err")'"
refuses 1 "task was \"$task\"" "${train[@]}" --task mqar:pairs=3,len=16,vocab=32 --resume --steps 7 --out made
refuses 2 "--resume" "${train[@]}" --task $task --steps 7 --out made

# Refusals name the column or the flag, and leave nothing behind.
refuses 2 'task: column 1: found "mqat", want a task, one of mqar' "${train[@]}" --task mqat --steps 1 --out t
refuses 2 "mqar: column 6: pairs is \"9\", want at most len / 4" "${train[@]}" --task mqar:pairs=9,len=16 --steps 1 --out t
refuses 2 "vocabulary of 512" "${train[@]}" --task $task --eval-task mqar --steps 1 --out t
refuses 2 "vocabulary of 512" eval --model made --task mqar
refuses 2 "column 13: unknown option frob" eval --model made --task "mqar:len=64,frob=1"
refuses 2 "--data or --task" eval --model made
refuses 2 "--data or --task" eval --model made --task $task --data text.txt
for flag in "--tokenizer bytes" "--data text.txt" "--valid text.txt" "--eval-tokens 5" "--length 16"; do
  refuses 2 "${flag% *}" "${train[@]}" --task $task --steps 1 --out t $flag
done
text=(--tokenizer bytes --data text.txt --length 8 --steps 1 --out t)
refuses 2 "--eval-task" "${train[@]}" "${text[@]}" --eval-task $task
refuses 2 "--eval-examples" "${train[@]}" "${text[@]}" --eval-examples 3
refuses 2 "--valid" "${train[@]}" "${text[@]}" --stop-accuracy 0.5
refuses 2 "--stop-accuracy" "${train[@]}" --task $task --steps 1 --out t --stop-accuracy 2
refuses 2 "--tokenizer" "${train[@]}" --steps 1 --out t
refuses 1 "No such file" "${train[@]}" --tokenizer bytes --data absent --length 8 --steps 1 --out t
# The table of the recall sweep comes from its results alone: the best over rates, the fewest tokens.
result() {
  printf '{"mixer":"a","length":%d,"pairs":4,"lr":%s,"accuracy":%s,"tokens":%s,"seconds":1,"state":"1.0 KiB",' "${@:1:4}"
  printf '"parameters":"7k","diverged":%s,"args":"--stack %s --lr %s --stop-accuracy 0.99"}\n' "$5" "'(attn)x2'" "$2"
}
{ result 128 1e-3 0.5 9000000 false; result 64 1e-2 0.991 2500000 false; result 64 1e-3 0.994 3000000 true; } >r.jsonl
render=$(bash "$2/scripts/recall.sh" --render r.jsonl) || fail "recall.sh --render"
same "recall table" "$(grep '`(attn)x2`' <<<"$render")" \
  '| a | `(attn)x2` | 7k | 99.4% (rate 1e-3); 2.5M; 1.0 KiB | 50.0% (rate 1e-3); -; 1.0 KiB; 1 of 2 rates |'
same "recall columns" "$(grep -o '[0-9]* tokens, 4 pairs' <<<"$render" | paste -sd,)" "64 tokens, 4 pairs,128 tokens, 4 pairs"
while IFS= read -r mixer; do
  works inspect --stack "${mixer#*=}" --width 64 --vocab 512 --context 256
  grep -q '^state a sequence: .* at 256 tokens' "$out" || fail "inspect --context prints '$(tail -1 "$out")'"
done < <(bash "$2/scripts/recall.sh" --list)
grep -q "finite numbers: 1\." <<<"$render" || fail "recall.sh does not count diverged runs"
[[ ! -e t ]] || fail "a refused training left $(ls t)"
finish
