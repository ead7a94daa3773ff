#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// logits (rows, classes) -> losses (rows), 0 where the target is negative.
template <class T>
std::vector<T> cross_entropy(const std::vector<T>& logits, const std::vector<int32_t>& targets) {
  const size_t classes = logits.size() / targets.size();
  std::vector<T> losses(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    const T* row = logits.data() + i * classes;
    double max = std::real(row[0]);
    for (size_t v = 0; v < classes; ++v) max = std::max(max, std::real(row[v]));
    T sum{};
    for (size_t v = 0; v < classes; ++v) sum += std::exp(row[v] - max);
    losses[i] = std::log(sum) + max - row[targets[i]];
  }
  return losses;
}

/// 1 where the target has the only largest logit of its row, else 0.
inline std::vector<int32_t> correct_targets(const std::vector<double>& logits,
                                            const std::vector<int32_t>& targets) {
  const size_t classes = logits.size() / targets.size();
  std::vector<int32_t> correct(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    const double* row = logits.data() + i * classes;
    int32_t rivals = 0;
    for (size_t v = 0; v < classes; ++v) rivals += row[v] >= row[targets[i]];
    correct[i] = rivals == 1;
  }
  return correct;
}

}  // namespace braid::reference
