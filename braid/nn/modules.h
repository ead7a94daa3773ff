#pragma once

#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/nn/parameter.h"

namespace braid {

/// y = x W^T + b.   x (N, in), W (out, in), b (out) optional.
class Linear {
 public:
  Linear() = default;
  /// `init` draws W; a bias starts at zero.
  Linear(const std::string& name, int64_t in, int64_t out, bool bias, Initializer init);

  Tensor forward(Context& ctx, const Tensor& x) const;
  void collect(std::vector<Parameter*>& out);
  double matmul_flops() const;
  const Parameter& weight() const { return weight_; }
  Parameter& weight() { return weight_; }

 private:
  Parameter weight_, bias_;
  bool has_bias_ = false;
};

enum class NormKind : uint8_t { kRms, kLayer };

/// RMSNorm (weight) or LayerNorm (weight and bias) over the last dimension.
class Norm {
 public:
  Norm() = default;
  Norm(const std::string& name, int64_t width, NormKind kind, double eps);

  Tensor forward(Context& ctx, const Tensor& x) const;
  void collect(std::vector<Parameter*>& out);

 private:
  Parameter weight_, bias_;
  NormKind kind_ = NormKind::kRms;
  float eps_ = 1e-5f;
};

/// The usual initialisations. `residual_init` is for a matrix that writes into the residual stream
/// of a stack with `sublayers` of them: its variance falls with their number.
Initializer projection_init(int64_t in);
Initializer residual_init(int64_t in, int64_t sublayers);
/// Uniform within gain sqrt(6 / (in + out)) of zero (Glorot & Bengio).
Initializer xavier_uniform_init(int64_t in, int64_t out, double gain);

}  // namespace braid
