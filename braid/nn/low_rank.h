#pragma once

#include <optional>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/nn/parameter.h"
#include "braid/ops/activation/activation.h"

namespace braid {

/// y = up f(down x) + bias, a map through a few dimensions, with the names and the start of
/// RWKV-7's: down is zero, up orthogonal with gain 0.1. No weight decay.
///   x (N, in); NAME1.weight (rank, in), NAME2.weight (out, rank), NAME0 (out) optional
class LowRank {
 public:
  struct Sizes {
    int64_t in, rank, out;
  };

  LowRank() = default;
  /// f is the identity where there is no `activation`; no bias without an initialiser for it.
  LowRank(const std::string& name, const Sizes& sizes, std::optional<Activation> activation,
          Initializer bias = {});

  Tensor forward(Context& ctx, const Tensor& x) const;
  void collect(std::vector<Parameter*>& out);
  double matmul_flops() const;

 private:
  Parameter down_, up_, bias_;
  std::optional<Activation> activation_;
  bool has_bias_ = false;
};

}  // namespace braid
