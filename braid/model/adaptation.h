#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/nn/state.h"
#include "braid/ops/linear/weight.h"

namespace braid {

class Stack;

struct AdaptationOptions {
  int64_t rank = 0;       // R, of the correction; 0: 64, or the width where that is less
  int64_t batch = 16;     // K, tokens whose gradients make one update
  double rate = 1;        // eta
  double horizon = 4096;  // tokens after which the correction has decayed to 1/e
};

/// Learning while reading, for any language model: a low-rank correction of the last hidden rows,
/// fitted online to predict the next token. With h (D) after the final norm and the head W (V, D)
/// times its scale s:
///
///   z = P h / |P h|                              (R), P (R, D) fixed random directions
///   logits = s W (h + U^T z)                     U (R, D), the fast weights, zero at first
///   g = s W^T (softmax(logits) - onehot(next))   the gradient at the corrected row, closed form
///   every K tokens of the sequence:  U <- exp(-K / horizon) U - eta / w sum_{K tokens} z g^T
///
/// where w is s^2 times the mean squared norm of the rows of W: a token met again in the same place
/// gains about eta (1 - p) nats. Gradient descent from zero makes U a kernel memory of the tokens
/// met: earlier places that look alike speak for what came then.
///
/// The updates lie on the sequence's own grid of K tokens, so every cut gives the same bits. Cost a
/// token: a second product with the head (and every row of a prompt needs the first). Extra memory:
/// the head once more, transposed. State of a sequence: (2 R D + R + D) float32.
///
/// Relatives: dynamic evaluation (Krause et al., arXiv:1709.07432), the continuous cache (Grave et
/// al., arXiv:1612.04426).
///
/// Thread safety: immutable.
class Adaptation {
 public:
  /// Throws Error(kUsage) for options out of range, Error(kUnsupported) off the CPU.
  Adaptation(Context& ctx, const Stack& stack, const AdaptationOptions& options);

  /// The slots it adds to a state, behind those of the sublayers.
  StateSpec state_spec() const;
  /// What a saved state must agree on, for people too: "rank=16,batch=16,...".
  const std::string& identity() const { return identity_; }

  /// P (R, D): the same for every model of the width.
  const Weight& directions() const { return directions_; }

  /// h (N, D) after the final norm, tokens (N) as packed -> logits (rows or N, V). Without `state`
  /// every sequence starts with U zero. Not differentiated.
  Tensor forward(Context& ctx, const Tensor& h, std::span<const int32_t> tokens,
                 const SequenceBatch& batch, const std::optional<std::vector<int64_t>>& rows,
                 const LayerState* state) const;

 private:
  struct Sequence;
  std::vector<Sequence> sequences(const SequenceBatch& batch, const LayerState* state,
                                  std::vector<float>* fresh) const;
  Tensor features(Context& ctx, const Tensor& h) const;
  void correct(const Sequence& s, const Tensor& h, const Tensor& z, float* out) const;
  void learn_pending(const Sequence& s, int32_t token) const;
  void learn(const Sequence& s, std::span<const int32_t> tokens, const Tensor& z, float* q) const;
  void gradient(float* q, int32_t target) const;
  void add(const Sequence& s, int64_t count, const float* z, const float* g) const;

  AdaptationOptions options_;
  std::string identity_;
  int64_t vocab_ = 0, width_ = 0;
  float logit_scale_ = 1;
  float keep_ = 1, step_ = 0;  // of an update
  Weight head_, head_transpose_, directions_;
};

}  // namespace braid
