#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "braid/ops/adamw/adamw.h"

namespace braid::reference {

template <class T>
void adamw(std::vector<T>& p, const std::vector<T>& g, std::vector<T>& m, std::vector<T>& v,
           const AdamWOptions& o) {
  const T beta1 = o.beta1, beta2 = o.beta2;
  const auto step = static_cast<T>(o.step);
  for (size_t i = 0; i < p.size(); ++i) {
    const T gradient = g[i] * o.gradient_scale;
    m[i] = beta1 * m[i] + (1 - beta1) * gradient;
    v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
    const T mean = m[i] / (1 - std::pow(beta1, step));
    const T square = v[i] / (1 - std::pow(beta2, step));
    p[i] -= o.lr * (o.weight_decay * p[i] + mean / (std::sqrt(square) + o.eps));
  }
}

}  // namespace braid::reference
