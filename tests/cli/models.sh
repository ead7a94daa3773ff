# Goal: a model directory of any content is loaded or refused in one line that says what is wrong.
source "$(dirname "$0")/lib.sh"
m=$work/model

# bad TEXT: the changed model must be refused by every command that loads one.
bad() {
  refuses 1 "$1" run --model "$m" --tokens 1 --max-tokens 1 --temperature 0 --print-tokens
}

# The directory and its config.
refuses 1 "absent" run --model absent --tokens 1
refuses 1 "absent" inspect --model absent
refuses 1 "absent" logits --model absent --tokens 1 --out l
mkdir empty
refuses 1 "config.json" run --model empty --tokens 1
model llama && : >model/config.json && bad "config.json"
model llama && printf '{"model_type": "llama",' >model/config.json && bad "config.json"
model llama && printf '[1, 2]' >model/config.json && bad "config.json"
model llama && printf '\xff\xfe{}' >model/config.json && bad "config.json"
model llama && printf '[%.0s' {1..100000} >model/config.json && bad "config.json"
model llama && printf '{"a":1}{"b":2}' >model/config.json && bad "config.json"
model llama && rm model/config.json && mkdir model/config.json && bad "config.json"
config() { model llama && sed -i "$1" model/config.json && ! cmp -s model/config.json "$golden/llama/config.json"; }
config 's/"model_type": "llama"/"model_type": "parrot\\n"/' && bad "parrot"
config '/model_type/d' && bad "model_type"
config 's/"hidden_size": 64/"hidden_size": "wide"/' && bad "hidden_size"
config 's/"hidden_size": 64/"hidden_size": -64/' && bad "hidden_size"
config 's/"hidden_size": 64/"hidden_size": 0/' && bad "hidden_size"
config 's/"hidden_size": 64/"hidden_size": 1e30/' && bad "hidden_size"
config 's/"hidden_size": 64/"hidden_size": 128/' && bad ""
config '/hidden_size/d' && bad "hidden_size"
config 's/"num_attention_heads": 4/"num_attention_heads": 0/' && bad "num_attention_heads"
config 's/"num_key_value_heads": 2/"num_key_value_heads": 3/' && bad "num_key_value_heads"
config 's/"num_hidden_layers": 3/"num_hidden_layers": 1000000000/' && bad "num_hidden_layers"
config 's/"num_hidden_layers": 3/"num_hidden_layers": 4/' && bad "layers.3"
config 's/"num_hidden_layers": 3/"num_hidden_layers": 2/' && bad "layers.2"
config 's/"vocab_size": 256/"vocab_size": 300/' && bad "(256, 64)"
config 's/"vocab_size": 256/"vocab_size": 9223372036854775807/' && bad "vocab_size"
config 's/"hidden_act": "silu"/"hidden_act": "tanh"/' && bad "tanh"
config 's/"rope_type": "default"/"rope_type": "spiral"/' && bad "spiral"
config 's/"rms_norm_eps": 1e-05/"rms_norm_eps": -1/' && bad "rms_norm_eps"
config 's/"rms_norm_eps": 1e-05/"rms_norm_eps": NaN/' && bad "config.json"

# The weights: files that are no safetensors.
weights() { model llama && cat >model/model.safetensors; }
model llama && rm model/model.safetensors && bad "model.safetensors"
weights </dev/null && bad "model.safetensors"
printf 'hello' | weights && bad "model.safetensors"
{ le8 100; printf '{}'; } | weights && bad "header"
{ le8 -1; printf '{}'; } | weights && bad "header"
{ le8 9223372036854775807; printf '{}'; } | weights && bad "header"
safetensors '{"a":' 0 | weights && bad "model.safetensors"
safetensors '[]' 0 | weights && bad "model.safetensors"
safetensors '{}' 0 | weights && bad "has no tensor"
safetensors '{"__metadata__":{"format":3}}' 0 | weights && bad "model.safetensors"

# one ENTRY BYTES TEXT: a single lying tensor.
one() { safetensors "{\"a\\n\\u001b[2Jb\":$1}" "$2" | weights && bad "$3"; }
one '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}' 8 "end"
one '{"dtype":"F32","shape":[4],"data_offsets":[16,32]}' 32 ""
one '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}' 24 ""
one '{"dtype":"F32","shape":[4],"data_offsets":[0,12]}' 12 "16"
one '{"dtype":"F32","shape":[4],"data_offsets":[16,0]}' 16 "data_offsets"
one '{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}' 16 "data_offsets"
one '{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551632]}' 16 "data_offsets"
one '{"dtype":"F32","shape":[4],"data_offsets":[0]}' 16 "data_offsets"
one '{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}' 16 "shape"
one '{"dtype":"F32","shape":[1.5],"data_offsets":[0,16]}' 16 "shape"
one '{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}' 0 ""
one '{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}' 0 ""
one '{"dtype":"F32","shape":[1,1,1,1,1,1,4],"data_offsets":[0,16]}' 16 "list of 7"
one '{"dtype":"Q4","shape":[4],"data_offsets":[0,16]}' 16 "Q4"
one '{"dtype":"F32","data_offsets":[0,16]}' 16 "shape"
one '{"shape":[4],"data_offsets":[0,16]}' 16 "dtype"
one '7' 16 ""
a='"dtype":"F32","shape":[4],"data_offsets"'
safetensors "{\"a\":{$a:[0,16]},\"b\":{$a:[8,24]}}" 24 | weights && bad "overlap"
safetensors "{\"a\":{$a:[0,16]},\"b\":{$a:[20,36]}}" 36 | weights && bad ""
safetensors "{\"a\":{$a:[0,16]},\"a\":{$a:[16,32]}}" 32 | weights && bad "given twice"
model llama && truncate -s -1 model/model.safetensors && bad "model.safetensors"
model llama && truncate -s 100000 model/model.safetensors && bad "model.safetensors"
model llama && printf 'x' >>model/model.safetensors && bad "model.safetensors"

# Good files of another model.
tensor() { model llama && edit_header model/model.safetensors "$1"; }
tensor 's/"model.norm.weight"/"model.norm.feather"/' && bad "model.norm.weight"
tensor 's/"lm_head.weight"/"lm_head.weighs"/' && bad "lm_head.weight"
tensor 's/\(down_proj.weight":{"dtype":"F32","shape":\)\[64,96\]/\1[96,64]/' && bad "(96, 64)"
tensor 's/\(norm.weight":{"dtype":"F32","shape":\)\[64\]/\1[8,8]/' && bad "(8, 8)"
tensor 's/\(norm.weight":{"dtype":\)"F32"/\1"I32"/' && bad "i32"

# Weights that are no numbers.
for poison in '\x00\x00\xc0\x7f' '\x00\x00\x80\x7f' '\x00\x00\x80\xff'; do
  for name in model.norm.weight model.layers.1.mlp.down_proj.weight model.embed_tokens.weight; do
    model llama
    at=$(tensor_offset model/model.safetensors "$name")
    printf "$poison" | dd of=model/model.safetensors bs=1 seek=$((at + 8)) conv=notrunc status=none
    bad "finite"
  done
done

# Shards.
index() { model llama && printf '%s' "$1" >model/model.safetensors.index.json && mv model/model.safetensors model/part.safetensors; }
map() { header "$golden/llama/model.safetensors" | grep -oE '"[a-z_0-9.]+\.weight"' | sed "s#\$#:\"$1\"#" | paste -sd,; }
index "{\"weight_map\":{$(map part.safetensors)}}"
works run --model model --tokens 1 --max-tokens 1 --temperature 0 --print-tokens
index '{}' && bad "weight_map"
index '{"weight_map":{}}' && bad ""
index "{\"weight_map\":{$(map absent.safetensors)}}" && bad "absent.safetensors"
index "{\"weight_map\":{$(map ../model/part.safetensors)}}" && bad "../model/part.safetensors"
index "{\"weight_map\":{$(map /etc/passwd)}}" && bad "/etc/passwd"
index "{\"weight_map\":{$(map part.safetensors),\"ghost\":\"part.safetensors\"}}" && bad "ghost"

# No tokenizer.
model llama
refuses 1 "tokenizer.json" run --model model --prompt hello
refuses 1 "tokenizer.json" run --model model --tokens 1 --max-tokens 1
for text in '' '{' '[]' '{}' '{"model":{"type":"Oracle"}}' $'\xff'; do
  model llama
  printf '%s' "$text" >model/tokenizer.json
  refuses 1 "tokenizer.json" run --model model --tokens 1 --max-tokens 1
done
finish
