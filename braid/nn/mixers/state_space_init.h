#pragma once

#include <algorithm>
#include <cmath>

#include "braid/nn/parameter.h"

namespace braid {

/// A bias b with softplus(b) log-uniform in [1e-3, 1e-1], as the authors of Mamba draw steps.
inline Initializer init_step_bias() {
  return [](std::span<float> values, const Rng& rng) {
    const double low = std::log(1e-3), high = std::log(1e-1);
    for (size_t i = 0; i < values.size(); ++i) {
      const double dt = std::max(std::exp(low + (high - low) * rng.uniform(i)), 1e-4);
      values[i] = static_cast<float>(dt + std::log(-std::expm1(-dt)));
    }
  };
}

/// log(-A) (E, N) with A[e, n] = -(n + 1): S4D-Real of Gu et al., arXiv:2206.11893.
inline Initializer init_s4d_real(int64_t state) {
  return [state](std::span<float> values, const Rng&) {
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t n = i % static_cast<size_t>(state);
      values[i] = static_cast<float>(std::log(1.0 + static_cast<double>(n)));
    }
  };
}

/// Uniform in [-1 / sqrt(in), 1 / sqrt(in)], times `scale`: what PyTorch draws for a linear map.
inline Initializer init_fan_in(int64_t in, double scale = 1) {
  const auto bound = static_cast<float>(scale / std::sqrt(static_cast<double>(in)));
  return init_uniform(-bound, bound);
}

}  // namespace braid
