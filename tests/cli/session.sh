# Goal: a conversation through --session is the conversation in one go; any other file is refused and
# left as it was.
source "$(dirname "$0")/lib.sh"

for name in llama mistral mamba2_g2; do
  m=$golden/$name
  tokens=$(ids "$m/expected.safetensors" input_ids 48)
  want=$(ids "$m/expected.safetensors" greedy 16)
  run=(run --model "$m" --temperature 0 --print-tokens)
  for cut in 1 17 47; do
    rm -f s
    works "${run[@]}" --max-tokens 0 --session s --tokens "$(cut -d, -f-$cut <<<"$tokens")"
    works "${run[@]}" --max-tokens 7 --session s --tokens "$(cut -d, -f$((cut + 1))- <<<"$tokens")"
    got=$(<"$out")
    works "${run[@]}" --max-tokens 9 --session s
    same "$name cut at $cut" "$got,$(<"$out")" "$want"
  done
done

# What is learned while reading goes on where it was.
m=$golden/mamba2_g2
tokens=$(ids "$m/expected.safetensors" input_ids 48)
run=(run --model "$m" --temperature 0 --print-tokens --adapt --adapt-batch 5)
works "${run[@]}" --max-tokens 9 --tokens "$tokens"
want=$(<"$out")
for cut in 1 5 31; do
  rm -f s
  works "${run[@]}" --max-tokens 0 --session s --tokens "$(cut -d, -f-$cut <<<"$tokens")"
  works "${run[@]}" --max-tokens 9 --session s --tokens "$(cut -d, -f$((cut + 1))- <<<"$tokens")"
  same "adapted, cut at $cut" "$(<"$out")" "$want"
done
refuses 1 "batch=5,rate=1,horizon=4096, want none" run --model "$m" --tokens 1 --session s
refuses 1 "want rank=64,batch=5,rate=2" "${run[@]}" --adapt-rate 2 --tokens 1 --session s
refuses 2 "rank 65, want 1..64" "${run[@]}" --adapt-rank 65 --tokens 1
refuses 2 "--adapt" run --model "$m" --tokens 1 --adapt-rate 2

m=$golden/llama
run=(run --model "$m" --temperature 0 --print-tokens --max-tokens 3)
rm -f s
works "${run[@]}" --session s --tokens 1,2,3
cp s good

# refused TEXT: --session s is refused and s stays as it is.
refused() {
  cp s before
  refuses 1 "$1" "${run[@]}" --session s --tokens 4
  cmp -s s before || fail "the session file changed"
  cp good s
}
: >s && refused "s: "
printf 'not a session' >s && refused "s: "
truncate -s -1 s && refused "s: "
truncate -s 100 s && refused "s: "
printf 'x' >>s && refused "s: "
cp "$m/model.safetensors" s && refused "not a session file"
edit_header s 's/"version":"1"/"version":"2"/' && refused "version 2, want 1"
edit_header s 's/"position":"6"/"position":"7"/' && refused "position 7"
edit_header s 's/"position":"6"/"position":"65"/' && refused "s: "
edit_header s 's/"position":"6"/"position":"-6"/' && refused "position is not a number"
edit_header s 's/"position":"6"/"position":"99999999999999"/' && refused "s: "
edit_header s 's/"logits"/"logitz"/' && refused "logits"
edit_header s 's/"sublayers.0/"sublayers.7/' && refused "sublayers.0"
edit_header s 's/"shape":\[\([0-9]*\)\]/"shape":[1,\1]/' && refused "want ("
rm s && refuses 1 "session of the model" run --model "$golden/mistral" --tokens 1 --print-tokens --session good
cp good s

# What cannot be written is said, and the old file stays.
refuses 1 "want 0..255" "${run[@]}" --session s --tokens 4,999
cmp -s s good || fail "a refused prompt changed the session file"
(
  trap '' XFSZ
  ulimit -f 8
  "$braid" "${run[@]}" --session s --tokens 4 >"$out" 2>"$err"
  [[ $? == 1 && $(<"$err") == "braid: cannot write s: File too large" ]]
) || fail "a session on a disk with 8 KiB: '$(<"$err")'"
cmp -s s good || fail "a full disk changed the session file"
refuses 1 "No such file" "${run[@]}" --session no/such/folder/s --tokens 4
mkdir folder
refuses 1 "folder" "${run[@]}" --session folder --tokens 4
chmod 000 s
[[ $(id -u) == 0 ]] || refuses 1 "Permission denied" "${run[@]}" --session s --tokens 4
finish
