#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "braid/model/config.h"

namespace braid {

/// A stack by name: what it is, without weights.
struct Preset {
  std::string_view name, stack;
  int64_t width = 0;  // D
  int64_t vocab = 0;  // V, where no tokenizer says otherwise
  std::string_view summary;
  bool planning = false;  // too large for this engine to train: to inspect
  NormKind norm = NormKind::kRms;
  bool embedding_norm = false;
};

/// Published shapes that speed is measured on, and survey2027:tiny|small|base, the stack that the
/// survey of 2026 predicts: (mamba2 swa:1024 moe:256/8) x N with a test-time-trained correction of
/// the last 4K to 8K tokens in front of the head. See docs/stacks.md for the sizes.
std::span<const Preset> presets();
/// Throws Error(kUsage) with the known names.
const Preset& find_preset(std::string_view name);
/// Their names, for messages.
std::string preset_names();

/// The config of its stack, tied, of float32 matrices, with its own vocabulary.
ModelConfig preset_config(const Preset& preset);

}  // namespace braid
