# Goal: mixtures of experts as a user meets them: counted, trained, resumed, read; what does not fit,
# in a spec or in a file, is refused in one line. Method: a stack trained here, and one of upstream.
source "$(dirname "$0")/lib.sh"

# Total and active parameters: router 8 x 64, experts 3 x 32 x 64 each, a norm; embedding and head 4 x 64.
works inspect --stack 'moe:8/2,hidden=32' --width 64 --vocab 4
grep -q "^parameters: 50.3K total, 13.4K active a token$" "$out" || fail "inspect says '$(tail -5 "$out")'"
works inspect --stack 'swiglu:hidden=64' --width 64 --vocab 4
grep -q "^parameters: 12.9K total, 12.9K active a token$" "$out" || fail "inspect says '$(tail -5 "$out")'"
works inspect --stack 'moe:1/1 moe:3/3,router=selected moe:6/2,router=sigmoid,groups=3,keep=1,select_bias=1,shared=2,shared_gate=1' --width 64

# Specs that fit nothing, with their column.
spec() { refuses 2 "$1" inspect --width 64 --stack "$2"; }
spec 'column 5: experts is "8/9", want E/k: k of E' 'moe:8/9'
spec 'column 5: experts is "8", want E/k' 'moe:8'
spec 'column 5: experts is "0/0"' 'moe:0/0'
spec 'column 5: experts is "-8/2"' 'moe:-8/2'
spec 'column 5: experts is "8/2/1"' 'moe:8/2/1'
spec 'column 5: experts is "99999999999999999999/2"' 'moe:99999999999999999999/2'
spec 'experts is missing' 'moe'
spec 'column 9: groups is "3", want a number that divides 8' 'moe:8/2,groups=3'
spec 'keep is "1", want groups with at least 3 experts' 'moe:8/3,groups=4,keep=1'
spec 'want one of softmax, sigmoid, selected' 'moe:8/2,router=tanh'
spec 'want one of swiglu, relu2, relu, gelu, silu' 'moe:8/2,act=tanh'
spec 'want 0 without shared experts' 'moe:8/2,shared_gate=1'
spec 'want select_bias=1 beside it' 'moe:8/2,balance=0.01'
spec 'capacity is "nan"' 'moe:8/2,capacity=nan'
spec 'capacity is "-1", want a number from 0' 'moe:8/2,capacity=-1'
spec 'balance is "2", want a number from 0 to 1' 'moe:8/2,select_bias=1,balance=2'
spec 'jitter is "2", want a number from 0 to 1' 'moe:8/2,jitter=2'
spec 'dropout is "1", want a number from 0 to 0.99' 'moe:8/2,dropout=1'
spec 'unknown option experts_per_token' 'moe:8/2,experts_per_token=2'

# Trained with everything that training alone does; the metrics tell of loads and drops.
stack='mamba2:state=4,head=8 moe:4/2,hidden=16,select_bias=1,seq_aux=0.01,jitter=0.1 moe:8/1,hidden=16,aux=0.01,z=0.001,capacity=1,dropout=0.1,shared=1'
train=(train --stack "$stack" --width 32 --batch 4 --seed 3 --task mqar:pairs=2,len=16,vocab=32)
made() { "$braid" "${train[@]}" --steps 6 "$@" >"$out" 2>"$err" || fail "train $*: $(tail -1 "$err")"; }
made --threads 1 --out whole
same "loads a step" "$(grep -cE '"load_peaks":\[[0-9.]+,[0-9.]+\]' whole/metrics.jsonl)" 6
same "drops a step" "$(grep -cE '"dropped":[0-9]+' whole/metrics.jsonl)" 6
made --threads 1 --recompute --out again
cmp -s whole/model.safetensors again/model.safetensors || fail "recomputing changes what is trained"
made --threads 2 --out threads
cmp -s whole/model.safetensors threads/model.safetensors || fail "a second thread changes what is trained"

# What was made loads; its result depends on no cut, and none of training's noise is left in it.
header whole/model.safetensors | grep -q '"sublayers.1.moe.router.bias"' || fail "the bias is not saved"
works logits --model whole --tokens 1,2,3,4,5,6,7 --out one.safetensors
works logits --model whole --tokens 1,2,3,4,5,6,7 --out cut.safetensors --pieces 1,4,2 --threads 2
cmp -s one.safetensors cut.safetensors || fail "logits depend on the pieces"
works eval --model whole --task mqar:pairs=2,len=16,vocab=32 --examples 20

# Weights from elsewhere that no token can be routed by.
m=$work/model
bad() { refuses 1 "$1" run --model "$m" --tokens 1 --max-tokens 1 --temperature 0 --print-tokens; }
router='model.layers.1.block_sparse_moe.gate.weight'
poke() {
  model mixtral
  printf "$2" | dd of="$m/model.safetensors" bs=1 conv=notrunc status=none \
    seek=$(($(tensor_offset "$m/model.safetensors" "$1") + 8))
}
poke "$router" '\x00\x00\xc0\x7f' && bad "holds a NaN or an infinity"
poke "$router" '\x00\x00\x80\xff' && bad "holds a NaN or an infinity"
# The largest float32: the logit overflows.
poke "$router" '\xff\xff\x7f\x7f' && bad "want a finite one"
# An expert that the file lacks, by its name.
absent() {
  model mixtral
  LC_ALL=C sed -i "s/layers.1.block_sparse_moe.experts.3.$1.weight/layers.1.block_sparse_moe.experts.9.$1.weight/" \
    "$m/model.safetensors"
  bad "layers.1.block_sparse_moe.experts.3.$1.weight"
}
absent w1 && absent w2 && absent w3
config() { model mixtral && sed -i "$1" "$m/config.json" && ! cmp -s "$m/config.json" "$golden/mixtral/config.json"; }
config 's/"num_experts_per_tok": 2/"num_experts_per_tok": 5/' && bad "experts"
config 's/"num_experts_per_tok": 2/"num_experts_per_tok": 0/' && bad "num_experts_per_tok"
config 's/"num_local_experts": 4/"num_local_experts": 0/' && bad "num_local_experts"
config 's/"num_local_experts": 4/"num_local_experts": 5/' && bad ""
config 's/"num_local_experts": 4/"num_local_experts": 3/' && bad ""
config 's/"num_local_experts": 4/"num_local_experts": 1000000000/' && bad "num_local_experts"
config 's/"intermediate_size": 40/"intermediate_size": 48/' && bad "(48, 64)"

finish
