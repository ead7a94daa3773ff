#pragma once

#include <cstdint>

namespace braid {

/// How logits become scores, and which experts' scores a weight is made of.
enum class RouteScore : uint8_t {
  kSoftmax,   // s = softmax over all E; the k best are chosen
  kSigmoid,   // s_e = sigmoid(logit_e), each expert on its own
  kSelected,  // the k best logits are chosen, s = softmax over those k
};
/// The score of a group of experts in a group-limited choice.
enum class GroupScore : uint8_t {
  kTop2,  // the sum of its two best (of its one, where it has one)
  kMax,
};

struct RouteOptions {
  int64_t top_k = 1;
  RouteScore score = RouteScore::kSoftmax;
  bool normalise = false;  // weights / (their sum + 1e-20)
  float scale = 1;         // of the weights, last
  int64_t groups = 1;      // of E / groups consecutive experts; only the `kept_groups` best count
  int64_t kept_groups = 1;
  GroupScore group_score = GroupScore::kTop2;
  /// Tokens an expert takes: max(4, floor(N k capacity / E)), first come first kept, all first
  /// slots before all second ones; 0: no limit. The only option under which a token's result
  /// depends on others.
  float capacity = 0;
  /// Coefficients of losses whose gradients the vjp adds to the logits'. They stand beside a mean
  /// over tokens, as a cross-entropy is, and are means over the N tokens themselves; what is
  /// recorded after the weights does not scale them. Formulas: route/README.md.
  float balance_loss = 0, z_loss = 0, sequence_loss = 0;
};

}  // namespace braid
