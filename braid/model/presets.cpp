#include "braid/model/presets.h"

#include "braid/core/error.h"
#include "braid/model/stack_spec.h"

namespace braid {
namespace {

constexpr Preset kPresets[] = {
    {.name = "survey2027:tiny",
     .stack = "(mamba2:state=64,head=32 swa:1024,heads=4,kv=2 "
              "moe:32/4,hidden=64,shared=1,router=sigmoid,select_bias=1)x2 ttt:8192",
     .width = 128,
     .vocab = 2048,
     .summary = "the 2027 stack at a size that two cores train in minutes"},
    {.name = "survey2027:small",
     .stack = "(mamba2:state=128,head=64 swa:1024,heads=8,kv=2 "
              "moe:256/8,hidden=128,shared=1,router=sigmoid,select_bias=1)x6 ttt:8192",
     .width = 512,
     .vocab = 32000,
     .summary = "the 2027 stack for one machine"},
    {.name = "survey2027:base",
     .stack = "(mamba2:state=128,head=64 swa:1024,heads=16,kv=4 "
              "moe:256/8,hidden=512,shared=1,router=sigmoid,select_bias=1)x24 ttt:8192",
     .width = 2048,
     .vocab = 128000,
     .summary = "the 2027 stack at the survey's depth, for planning",
     .planning = true},
    {.name = "mamba-130m",
     .stack = "(mamba1:state=16)x24",
     .width = 768,
     .vocab = 50280,
     .summary = "Mamba-1 130M"},
    {.name = "mamba2-130m",
     .stack = "(mamba2:state=128,head=64)x24",
     .width = 768,
     .vocab = 50288,
     .summary = "Mamba-2 130M"},
    {.name = "llama-135m",
     .stack = "(attn:heads=9,kv=3 swiglu:hidden=1536)x30",
     .width = 576,
     .vocab = 49152,
     .summary = "SmolLM2 135M, a Llama"},
    {.name = "rwkv7-0.1b",
     .stack = "(rwkv7 rwkv7_cmix)x12",
     .width = 768,
     .vocab = 65536,
     .summary = "RWKV-7 0.1B",
     .norm = NormKind::kLayer,
     .embedding_norm = true},
};

}  // namespace

std::span<const Preset> presets() { return kPresets; }

std::string preset_names() {
  std::string names;
  for (const Preset& preset : kPresets) {
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  }
  return names;
}

const Preset& find_preset(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name == name) return preset;
  }
  fail(ErrorKind::kUsage, "there is no preset '{}', want one of {}", name, preset_names());
}

ModelConfig preset_config(const Preset& preset) {
  ModelConfig config;
  config.width = preset.width;
  config.vocab = preset.vocab;
  config.tied = true;
  config.norm = preset.norm;
  config.embedding_norm = preset.embedding_norm;
  config.sublayers = parse_stack(std::string(preset.stack));
  return config;
}

}  // namespace braid
