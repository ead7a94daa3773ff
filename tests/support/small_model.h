#pragma once

// A small hybrid stack with random weights, for tests of what lies above it.

#include <cstdint>
#include <string>
#include <vector>

#include "braid/core/rng.h"
#include "braid/infer/session.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"

namespace braid::test {

inline constexpr const char* kHybridStack =
    "(mamba2:state=16,head=16 swa:24,heads=4 attn:heads=4 swiglu)x2";

struct SmallModel {
  static constexpr int64_t kVocab = 96;
  static constexpr uint64_t kFingerprint = 0x0123456789abcdefu;

  Context ctx{{.threads = 1, .poison = true}};
  Stack stack;

  explicit SmallModel(const std::string& spec = kHybridStack, uint64_t seed = 1)
      : stack(config(spec)) {
    stack.initialize(ctx, Rng(seed));
  }

  static ModelConfig config(const std::string& spec) {
    ModelConfig config;
    config.vocab = kVocab;
    config.width = 64;
    config.tied = true;
    config.sublayers = parse_stack(spec);
    return config;
  }

  Session session(const SessionOptions& options = {}) const {
    return Session(stack, kFingerprint, ctx, options);
  }
  /// A session that has read `tokens` in one go.
  Session session_of(const std::vector<int32_t>& tokens) {
    Session made = session();
    made.append(ctx, tokens);
    return made;
  }
};

inline std::vector<int32_t> random_tokens(int64_t n, uint64_t seed,
                                          int64_t vocab = SmallModel::kVocab) {
  const Rng rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab)));
  }
  return tokens;
}

}  // namespace braid::test
