# Goal: merge-experts as a user meets it: what it prints, writes and refuses; and training that merges.
source "$(dirname "$0")/lib.sh"

for i in {1..60}; do
  echo "the braid of a river runs over stone $i and under light $((i * 7 % 13)) and back"
  ((i % 9)) || echo '<|endoftext|>'
done >text.txt
train=(train --width 16 --tokenizer bytes --data text.txt --length 16 --batch 4 --threads 1 --dtype f32)
"$braid" "${train[@]}" --stack 'swa:8,heads=2 moe:4/2,hidden=16' --steps 8 --warmup 2 \
  --merge-every 3 --merge-threshold 2 --out made >"$out" 2>"$err" || fail "train: $(tail -1 "$err")"
same "merges in training" "$(grep -c '"merged"' made/metrics.jsonl)" 2
grep -q "merged into" "$err" || fail "train does not tell of merges: '$(<"$err")'"

# All that may be merged, at any price; then nothing.
works merge-experts --model made --data text.txt --max-loss-increase 1000 --threshold 2 --out small
same "what was merged" "$(grep -c '^merged' "$out")" 2
same "the stack" "$(grep ^stack "$out")" "stack swa:8,heads=2 moe:2/2,hidden=16"
loss=$(sed -n 's/^merges .*; loss .* -> \([0-9.]*\) .*/\1/p' "$out")
works eval --model small --data text.txt
same "the loss that was measured" "$(head -1 "$out")" "loss $loss"
[[ -e small/tokenizer.json ]] || fail "the merged model has no tokenizer"
works merge-experts --model made --data text.txt --max-loss-increase 0 --threshold 0 --out same
grep -q "^merges 0;" "$out" || fail "merge-experts says '$(tail -2 "$out")'"
works eval --model made --data text.txt
cp "$out" loss
works eval --model same --data text.txt
cmp -s "$out" loss || fail "a model without merges has another loss"

merge=(merge-experts --data text.txt --out refused)
"$braid" "${train[@]}" --stack 'swa:8,heads=2 swiglu:hidden=16' --steps 1 --out dense 2>"$err" ||
  fail "train: $(tail -1 "$err")"
refuses 2 "--max-loss-increase" "${merge[@]}" --model made
for bad in -0.1 nan inf; do
  refuses 2 "loss increase of" "${merge[@]}" --model made --max-loss-increase $bad
done
refuses 2 "threshold nan" "${merge[@]}" --model made --max-loss-increase 1 --threshold nan
refuses 2 "--sample" "${merge[@]}" --model made --max-loss-increase 1 --sample 0
refuses 1 "no experts, want a sublayer moe" "${merge[@]}" --model dense --max-loss-increase 1
refuses 1 "absent.txt" merge-experts --model made --data absent.txt --max-loss-increase 1 --out refused
[[ ! -e refused ]] || fail "a refused call wrote a model"
refuses 2 "--merge-threshold" "${train[@]}" --stack 'swa:8 moe:4/2' --steps 1 --merge-threshold 3 --out t
finish
