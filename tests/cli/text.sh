# Goal: train, eval and tokenizer as a user meets them, and text that is hostile.
source "$(dirname "$0")/lib.sh"

printf 'Once upon a time there was a fox.\n<|endoftext|>The end of it.\n%.0s' {1..200} >text.txt
train=(train --stack 'mamba2:state=4,head=8 swiglu' --width 16 --tokenizer bytes --length 32 --batch 2
  --threads 1)
checks=$((checks + 1))
"$braid" "${train[@]}" --data text.txt --steps 3 --out made >"$out" 2>"$err" || fail "train: $(tail -1 "$err")"
works inspect --model made
works eval --model made --data text.txt
grep -qi "bits_per_byte" "$out" || fail "eval prints '$(<"$out")'"
works run --model made --prompt 'Once' --max-tokens 8 --temperature 0 --ignore-eos
printf 'Once' | works run --model made --prompt - --max-tokens 8 --temperature 0 --ignore-eos
works run --model made --prompt $'\xf0\x9f\xa6\x8a' --max-tokens 8 --seed 3
iconv -f UTF-8 -t UTF-8 <"$out" >/dev/null || fail "streams invalid UTF-8"

refuses 1 "invalid UTF-8 at byte 2" run --model made --prompt $'ab\xff'
refuses 1 "invalid UTF-8 at byte 0" run --model made --prompt $'\xed\xa0\x80'
printf 'ok \xc0\xaf' | refuses 1 "invalid UTF-8 at byte 3" run --model made --prompt -

refuses 1 "absent.txt" "${train[@]}" --data absent.txt --steps 1 --out t
: >empty.txt
refuses 1 "" "${train[@]}" --data empty.txt --steps 1 --out t

# Bytes are bytes: what is no UTF-8 trains and is measured; any other tokenizer refuses it.
printf 'fine \xff text' >bad.txt
checks=$((checks + 1))
"$braid" "${train[@]}" --data bad.txt --steps 1 --out bytes >"$out" 2>"$err" || fail "bytes: $(tail -1 "$err")"
works eval --model bytes --data bad.txt
"$braid" tokenizer train --data text.txt --vocab 300 --out words.json >"$out" 2>"$err" || fail "tokenizer"
refuses 1 "not UTF-8 at byte 5" train --length 8 --batch 2 --stack attn --width 64 --tokenizer words.json --data bad.txt --steps 1 --out t
refuses 2 "column" train --length 32 --batch 2 --stack 'frob' --width 16 --tokenizer bytes --data text.txt --steps 1 --out t
refuses 2 "linformer, sees the tokens that are to be predicted, want causal sublayers" train --length 32 --batch 2 \
  --stack 'attn linformer:32,rank=4' --width 16 --tokenizer bytes --data text.txt --steps 1 --out t
refuses 1 "absent.json" train --length 32 --batch 2 --stack attn --width 16 --tokenizer absent.json --data text.txt --steps 1 --out t
refuses 2 "--width" "${train[@]}" --width -1 --data text.txt --steps 1 --out t
refuses 2 "--frob" "${train[@]}" --data text.txt --steps 1 --out t --frob
mkdir full && : >full/precious
"$braid" "${train[@]}" --data text.txt --steps 1 --out full >"$out" 2>"$err"
[[ -e full/precious ]] || fail "train removed a file that is not its own"
: >file
refuses 1 "file" "${train[@]}" --data text.txt --steps 1 --out file
[[ ! -e t ]] || fail "a refused training left $(find t)"
refuses 1 "absent.txt" eval --model made --data absent.txt
refuses 1 "" eval --model made --data empty.txt

works tokenizer encode --tokenizer bytes --text 'fox'
works tokenizer decode --tokenizer bytes --tokens "$(<"$out")"
same "bytes there and back" "$(<"$out")" "fox"
refuses 1 "absent.json" tokenizer encode --tokenizer absent.json --text x
refuses 1 "empty.json" tokenizer encode --tokenizer empty.json --text x
printf '' >empty.json
refuses 1 "empty.json" tokenizer encode --tokenizer empty.json --text x
refuses 1 "UTF-8" tokenizer encode --tokenizer bytes --text $'\xff'
refuses 1 "100000" tokenizer decode --tokenizer bytes --tokens 100000
refuses 2 "is not a token id" tokenizer decode --tokenizer bytes --tokens 1,b
refuses 2 "subcommand" tokenizer
works tokenizer train --data text.txt --vocab 300 --out tok.json
works tokenizer encode --tokenizer tok.json --text 'Once upon a time'
works tokenizer decode --tokenizer tok.json --tokens "$(<"$out")"
same "a trained tokenizer there and back" "$(<"$out")" "Once upon a time"
refuses 1 "" tokenizer train --data absent.txt --vocab 300 --out tok2.json
refuses 1 "" tokenizer train --data text.txt --vocab 3 --out tok2.json
[[ ! -e tok2.json ]] || fail "a refused tokenizer training left a file"
finish
