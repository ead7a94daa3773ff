#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "braid/infer/sampler.h"
#include "braid/model/adaptation.h"
#include "braid/model/stack.h"

namespace braid {

struct SessionOptions {
  /// Tokens of a long prompt that go through the stack at a time. Affects memory and speed, never
  /// the result.
  int64_t piece = 512;
  /// How far `rollback` can go, up to 16. More than 0 costs a copy of the fixed state every 16
  /// tokens.
  int64_t rollback_tokens = 0;
  /// Ids at or above this are padding of the matrix and never drawn; 0: there are none.
  int64_t drawn_vocab = 0;
  /// Learns while reading; its fast weights are part of the state. Must outlive the session.
  const Adaptation* adaptation = nullptr;
};

/// One sequence in conversation with a model: the state after the tokens read so far, the logits
/// for the next one, the count and a rolling hash of the tokens. A copy is a fork that shares
/// memory until one of the two goes on.
///
/// Invariants: logits() belongs to the last token read. The hash is a function of the tokens alone,
/// however they were cut.
class Session {
 public:
  /// `stack` must outlive the session. `fingerprint` names the model in saved files.
  Session(const Stack& stack, uint64_t fingerprint, const Context& ctx,
          const SessionOptions& options = {});

  /// Reads tokens. Throws before anything changes if one is not in the vocabulary.
  void append(Context& ctx, std::span<const int32_t> tokens);

  /// Samples up to `max_tokens` tokens; each is read before the next is drawn. `on_token` returns
  /// false to stop after the token it was given. Returns how many tokens were made.
  int64_t generate(Context& ctx, Sampler& sampler, int64_t max_tokens,
                   const std::function<bool(int32_t)>& on_token);

  Session fork() const { return *this; }

  /// Forgets the last `tokens` tokens. Throws Error(kUsage), and changes nothing, beyond
  /// `rollback_tokens` or what has been read since the session was made or loaded. Several in a row
  /// reach `rollback_tokens` behind the furthest position.
  void rollback(Context& ctx, int64_t tokens);

  /// Written atomically; safetensors with the format version and the model's fingerprint.
  void save(const Context& ctx, const std::filesystem::path& path) const;
  /// Replaces this session. Refuses a file of another model, format or stack.
  void load(const std::filesystem::path& path);

  int64_t position() const { return state_.position(); }
  uint64_t hash() const { return hash_; }
  int64_t state_bytes() const { return state_.bytes(); }
  /// (V) for the next token; empty before the first token.
  std::span<const float> logits() const { return logits_; }

 private:
  void read(Context& ctx, std::span<const int32_t> tokens);
  void remember(std::span<const int32_t> tokens);
  void drop_old_marks();

  struct Mark {
    State::Mark state;
    uint64_t hash = 0;
    std::vector<float> logits;
  };

  const Stack* stack_;
  uint64_t fingerprint_;
  SessionOptions options_;
  State state_;
  std::vector<float> logits_;
  uint64_t hash_ = 0;
  std::vector<Mark> marks_;      // oldest first, at most three
  std::vector<int32_t> recent_;  // the last kMaxReplay tokens
};

}  // namespace braid
