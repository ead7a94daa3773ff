#pragma once

#include <complex>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "braid/ops/activation/reference.h"
#include "braid/ops/experts/experts.h"
#include "braid/ops/gelu/reference.h"
#include "braid/ops/linear/reference.h"
#include "braid/ops/swiglu/reference.h"

namespace braid::reference {

struct ExpertShape {
  int64_t tokens, slots, experts, width, hidden;
  ExpertActivation activation;
  int64_t in_rows() const { return activation == ExpertActivation::kSwiglu ? 2 * hidden : hidden; }
};

template <class T>
std::vector<T> expert_activation(const std::vector<T>& x, const ExpertShape& s) {
  switch (s.activation) {
    case ExpertActivation::kSwiglu:
      return swiglu(x, static_cast<size_t>(s.hidden));
    case ExpertActivation::kRelu2:
      return activation(x, Activation::kReluSquared);
    case ExpertActivation::kRelu:
      return activation(x, Activation::kRelu);
    case ExpertActivation::kGelu:
      return gelu(x, false);
    case ExpertActivation::kSilu:
      break;
  }
  return activation(x, Activation::kSilu);
}

/// x (N, D), ids (N, k), weights (N, k), in (E, 2F or F, D), out (E, D, F) -> y (N, D)
template <class T>
std::vector<T> experts(const ExpertShape& s, const std::vector<int32_t>& ids,
                       const std::vector<T>& x, const std::vector<T>& weights,
                       const std::vector<T>& in, const std::vector<T>& out) {
  const auto part = [](const std::vector<T>& all, int64_t index, int64_t size) {
    return std::vector<T>(all.begin() + index * size, all.begin() + (index + 1) * size);
  };
  std::vector<T> y(static_cast<size_t>(s.tokens * s.width));
  for (int64_t n = 0; n < s.tokens; ++n) {
    for (int64_t j = 0; j < s.slots; ++j) {
      const auto slot = static_cast<size_t>(n * s.slots + j);
      const int64_t e = ids[slot];
      if (e < 0) continue;
      const std::vector<T> pre = linear(1, s.in_rows(), s.width, part(x, n, s.width),
                                        part(in, e, s.in_rows() * s.width), {});
      const std::vector<T> row = linear(1, s.width, s.hidden, expert_activation(pre, s),
                                        part(out, e, s.width * s.hidden), {});
      for (int64_t i = 0; i < s.width; ++i) {
        y[static_cast<size_t>(n * s.width + i)] += weights[slot] * row[static_cast<size_t>(i)];
      }
    }
  }
  return y;
}

}  // namespace braid::reference
