# Goal: a wrong command line ends with exit code 2, a full disk with 1, each in one line.
source "$(dirname "$0")/lib.sh"
m=$golden/llama

works --version
grep -Eq '^[0-9]+\.[0-9]+\.[0-9]+$' "$out" || fail "--version prints '$(<"$out")'"
works --help
for command in run logits train eval merge-experts inspect tokenizer bench; do
  grep -q "^  $command" "$out" || fail "--help does not name $command"
done
for command in run logits train eval merge-experts inspect bench "tokenizer encode" "tokenizer decode"; do
  works $command --help
done

refuses 2 "subcommand"
refuses 2 "no command 'dance', want one of run, logits" dance
refuses 2 "--frobnicate" run --model "$m" --frobnicate
refuses 2 "--model" run
refuses 2 "--model" run --tokens 1,2
refuses 2 "?" run --model "$m" $'--no\nsuch\e[2Jflag'
refuses 2 "--tokens" logits --model "$m" --out l
refuses 2 "--out" logits --model "$m" --tokens 1
refuses 2 "excludes" run --model "$m" --tokens 1 --prompt x
refuses 2 "--max-tokens" run --model "$m" --tokens 1 --max-tokens -1
refuses 2 "--max-tokens" run --model "$m" --tokens 1 --max-tokens many
refuses 2 "--temperature" run --model "$m" --tokens 1 --temperature -0.5
refuses 2 "--top-p" run --model "$m" --tokens 1 --top-p 0
refuses 2 "--top-p" run --model "$m" --tokens 1 --top-p 1.5
refuses 2 "top_p nan" run --model "$m" --tokens 1 --top-p nan
refuses 2 "temperature nan" run --model "$m" --tokens 1 --temperature nan
refuses 2 "--top-k" run --model "$m" --tokens 1 --top-k -3
refuses 2 "--threads" run --model "$m" --tokens 1 --threads -1
refuses 2 "--threads" run --model "$m" --tokens 1 --threads 1000000
refuses 2 "--max-tokens: 9223372036854775808 is too large" run --model "$m" --tokens 1 --max-tokens 9223372036854775808
refuses 2 "--seed: -1 is negative" run --model "$m" --tokens 1 --seed -1
refuses 2 "--seed: 18446744073709551616 is too large" run --model "$m" --tokens 1 --seed 18446744073709551616
works run --model "$m" --tokens 1 --max-tokens 1 --seed 18446744073709551615 --print-tokens

# Benchmarks: the ops there are; one that takes no time runs, checked against its reference.
refuses 2 "there is no op 'frob', want one of activation, adamw" bench --op frob
for folder in "$2"/braid/ops/*/; do
  grep -q "[ ,]$(basename "$folder")\(,\|$\)" "$err" || fail "no benchmark of $folder: $(<"$err")"
done
works bench --op view --threads 1
grep -q "gather 16 of 2048 x 768 .* us .* GB/s .*% of .* GFLOP/s .*% of " "$out" || fail "bench prints '$(<"$out")'"

# Token lists.
refuses 2 "'1x' is not a token id" run --model "$m" --tokens 1x --print-tokens
refuses 2 "'-1' is not a token id" run --model "$m" --tokens 5,-1 --print-tokens
refuses 2 "'99999999999' is not a token id" run --model "$m" --tokens 99999999999 --print-tokens
refuses 2 "no ids" logits --model "$m" --tokens "," --out l
refuses 1 "256, want 0..255" run --model "$m" --tokens 1,256 --print-tokens
refuses 1 "want 0..255" logits --model "$m" --tokens 2147483647 --out l
refuses 1 "No such file" run --model "$m" --tokens @absent --print-tokens
refuses 2 "nothing to continue" run --model "$m" --print-tokens
printf '1,2\n3' | works logits --model "$m" --tokens - --out l
printf '1 2,\t3\n' >list
works logits --model "$m" --tokens @list --out l2
cmp -s l l2 || fail "the same ids from stdin and from a file give other logits"

# Pieces.
for pieces in 1 1,1 1,3 4 0,3 3,0; do
  refuses 2 "--pieces: lengths add up to" logits --model "$m" --tokens 1,2,3 --out l --pieces $pieces
done
refuses 2 "'x' is not a token id" logits --model "$m" --tokens 1,2,3 --out l --pieces x

# Devices.
refuses 2 "want cpu, cuda or cuda:INDEX" run --model "$m" --tokens 1 --device tpu
refuses 2 "want cpu, cuda or cuda:INDEX" run --model "$m" --tokens 1 --device cuda:-1

# Stack specs, with the column of what is wrong.
refuses 2 "--model DIR, --stack SPEC or --preset NAME" inspect
refuses 2 "--width" inspect --stack attn
refuses 2 "column 1" inspect --width 64 --stack 'frob'
refuses 2 "column 13: found the end" inspect --width 64 --stack '(attn swiglu'
refuses 2 "column" inspect --width 64 --stack 'attn)'
refuses 2 "column" inspect --width 64 --stack '(attn)x'
refuses 2 "column" inspect --width 64 --stack '(attn)x0'
refuses 2 "column" inspect --width 64 --stack '(attn)x99999999999999999999'
refuses 2 "--stack SPEC" inspect --width 64 --stack ''
refuses 2 "column" inspect --width 64 --stack '()'
refuses 2 "column" inspect --width 64 --stack 'attn|'
refuses 2 "heads" inspect --width 64 --stack 'attn:heads=4,heads=4'
refuses 2 "heads" inspect --width 64 --stack 'attn:heads=x'
refuses 2 "heads" inspect --width 64 --stack 'attn:heads=0'
refuses 2 "heads" inspect --width 64 --stack 'attn:heads=7'
refuses 2 "wings" inspect --width 64 --stack 'attn:wings=2'
refuses 2 "window" inspect --width 64 --stack 'swa'
refuses 2 "window" inspect --width 64 --stack 'swa:0'
refuses 2 "" inspect --width 64 --stack "$(printf '(%.0s' {1..5000})"
refuses 2 "" inspect --width 64 --stack '((((((((attn)x999)x999)x999)x999)x999)x999)x999)x999'
refuses 2 "" inspect --width 64 --stack $'attn:heads=\xff\n'
works inspect --width 64 --stack '(mamba2:state=16,head=16 swa:24,heads=4|attn:heads=4 swiglu)x2'

# A full disk, and outputs that cannot be one.
for args in "--help" "inspect --stack attn --width 64" "inspect --model $m" \
  "run --model $m --tokens 1 --max-tokens 2 --temperature 0 --print-tokens"; do
  checks=$((checks + 1))
  "$braid" $args >/dev/full 2>"$err"
  [[ $? == 1 && $(wc -l <"$err") == 1 ]] || fail "braid $args on a full disk: '$(head -c 200 "$err")'"
  grep -q "No space left on device" "$err" || fail "braid $args on a full disk: '$(<"$err")'"
done
mkfifo pipe
refuses 1 "not a regular file" logits --model "$m" --tokens 1 --out pipe
[[ -p pipe ]] || fail "the pipe is gone"
refuses 1 "No such file" logits --model "$m" --tokens 1 --out no/such/folder/l
mkdir folder
refuses 1 "not a regular file" logits --model "$m" --tokens 1 --out folder
rm -f l
(
  trap '' XFSZ
  ulimit -f 8
  "$braid" logits --model "$m" --tokens "$(seq -s, 1 99)" --out l >"$out" 2>"$err"
  [[ $? == 1 ]]
) || fail "logits on a disk with 8 KiB: '$(<"$err")'"
[[ ! -e l && $(<"$err") == "braid: cannot write l: File too large" ]] ||
  fail "logits on a disk with 8 KiB: '$(<"$err")' $(ls)"
finish
