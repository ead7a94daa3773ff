#include "braid/infer/sampler.h"

#include <algorithm>
#include <cmath>

#include "braid/core/error.h"

namespace braid {

Sampler::Sampler(const SamplerOptions& options) : options_(options), rng_(options.seed) {
  check(options.temperature >= 0 && std::isfinite(options.temperature),
        "sampler: temperature {}, want >= 0", options.temperature);
  check(options.top_p > 0 && options.top_p <= 1, "sampler: top_p {}, want in (0, 1]",
        options.top_p);
  check(options.top_k >= 0, "sampler: top_k {}, want >= 0", options.top_k);
}

int32_t Sampler::sample(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    check(logits[i] < INFINITY, ErrorKind::kFormat,  // false for NaN as well
          "sampler: the logit of token {} is {}, want a number", i, logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  check(!logits.empty() && logits[best] > -INFINITY, ErrorKind::kFormat,
        "sampler: no token of {} has a logit above -inf", logits.size());
  if (options_.temperature == 0) return static_cast<int32_t>(best);

  // Weights relative to the largest; sorted only as far as a filter needs.
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    const double below = static_cast<double>(logits[i]) - logits[best];
    const double w = std::exp(below / options_.temperature);
    candidates_.emplace_back(static_cast<float>(w), static_cast<int32_t>(i));
  }
  const auto likelier = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(candidates_.size())) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(),
                     likelier);
    candidates_.resize(static_cast<size_t>(options_.top_k));
  }
  double total = 0;
  if (options_.top_p < 1) {
    std::sort(candidates_.begin(), candidates_.end(), likelier);
    for (const auto& [w, id] : candidates_) total += w;
    double kept = 0;
    size_t n = 0;
    while (n < candidates_.size() && kept < options_.top_p * total) kept += candidates_[n++].first;
    candidates_.resize(std::max<size_t>(n, 1));
  }
  total = 0;
  for (const auto& [w, id] : candidates_) total += w;
  const auto bits = rng_.block(draws_++);
  double point = (static_cast<double>(bits[0]) + 0x1p-32 * bits[1]) * 0x1p-32 * total;
  for (const auto& [w, id] : candidates_) {
    point -= w;
    if (point < 0) return id;
  }
  return static_cast<int32_t>(best);  // rounding used up the mass
}

}  // namespace braid
