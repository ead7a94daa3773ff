# Goal: the tool gives the reference's greedy tokens, whole, in pieces, from files and pipes, on any
# number of threads. Method: the checkpoints of tests/golden.
source "$(dirname "$0")/lib.sh"

for directory in "$golden"/*/; do
  [[ -f $directory/model.safetensors ]] || continue # single ops have tests of their own
  name=$(basename "$directory")
  expected=$directory/expected.safetensors
  tokens=$(ids "$expected" input_ids 48)
  want=$(ids "$expected" greedy 16)
  run=(run --model "$directory" --max-tokens 16 --temperature 0 --print-tokens)
  [[ $name == llama_dynamic ]] && continue # each step of the reference has angles of its own
  works "${run[@]}" --tokens "$tokens"
  same "$name" "$(<"$out")" "$want"
  works "${run[@]}" --tokens "$tokens" --threads 1 --seed 9 --top-k 5
  same "$name on one thread" "$(<"$out")" "$want"
  works logits --model "$directory" --tokens "$tokens" --out whole.safetensors
  [[ $name == llama_longrope ]] && continue # its angles depend on the whole length
  for pieces in 48 1,47 17,31 "$(printf '1,%.0s' {1..47})1"; do
    works logits --model "$directory" --tokens "$tokens" --out pieces.safetensors --pieces "$pieces"
    if grep -qw avx512bw /proc/cpuinfo; then
      cmp -s whole.safetensors pieces.safetensors || fail "$name: pieces $pieces change the logits"
    fi
  done
done

m=$golden/mamba2_g1
tokens=$(ids "$m/expected.safetensors" input_ids 48)
sample=(run --model "$m" --max-tokens 24 --print-tokens --ignore-eos --tokens "$tokens")
works "${sample[@]}" --seed 7
first=$(<"$out")
same "tokens asked for" "$(tr ',' '\n' <"$out" | wc -l)" 24
works "${sample[@]}" --seed 7 --threads 1
same "the same seed" "$(<"$out")" "$first"
works "${sample[@]}" --seed 8
[[ $(<"$out") != "$first" ]] || fail "another seed gives the same tokens"
works run --model "$m" --print-tokens --tokens "$tokens" --max-tokens 0
same "no tokens" "$(<"$out")" ""
finish
