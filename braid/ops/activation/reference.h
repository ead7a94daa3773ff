#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

#include "braid/ops/activation/activation.h"

namespace braid::reference {

/// Branches look at the real part, so that a complex step differentiates it.
template <class T>
T activation(const T& x, Activation kind) {
  const bool positive = std::real(x) > 0;
  switch (kind) {
    case Activation::kExp:
      return std::exp(x);
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kSoftplus:
      return positive ? x + std::log(1.0 + std::exp(-x)) : std::log(1.0 + std::exp(x));
    case Activation::kRelu:
      return positive ? x : T(0);
    case Activation::kReluSquared:
      return positive ? x * x : T(0);
    case Activation::kEluPlusOne:
      return positive ? x + 1.0 : std::exp(x);
  }
  return T(NAN);
}

template <class T>
std::vector<T> activation(const std::vector<T>& x, Activation kind) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = activation(x[i], kind);
  return y;
}

}  // namespace braid::reference
