#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>

#include "braid/infer/session.h"
#include "braid/model/stack.h"
#include "braid/model/tokenizer/tokenizer.h"

namespace braid {

/// A model directory, ready to run: weights packed for the kernels and, if there is one, the
/// tokenizer.
///
/// Thread safety: const members may be used from several threads with contexts of their own.
class Model {
 public:
  /// Sees the stack before its weights are read and says which of them are.
  using FilterFor = std::function<ParameterFilter(const Stack& stack)>;

  /// Reads config.json, the weights and tokenizer.json (or rwkv_vocab_v20230424.txt). The mapped
  /// file pages are given back as the weights are packed.
  static Model load(Context& ctx, const std::filesystem::path& directory,
                    const FilterFor& filter_for = {});

  const Stack& stack() const { return *stack_; }
  const ModelConfig& config() const { return stack_->config(); }
  uint64_t fingerprint() const { return fingerprint_; }
  bool has_tokenizer() const { return tokenizer_ != nullptr; }
  /// Throws Error(kFormat) where the directory has none.
  const Tokenizer& tokenizer() const;

  /// A fresh conversation. Draws only ids that the tokenizer knows, if there is one.
  Session session(const Context& ctx, SessionOptions options = {}) const;
  bool ends(int32_t token) const;  // one of the end-of-sequence ids

 private:
  std::unique_ptr<Stack> stack_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::filesystem::path directory_;
  uint64_t fingerprint_ = 0;
};

}  // namespace braid
