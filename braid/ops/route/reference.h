#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <numeric>
#include <vector>

#include "braid/ops/route/options.h"

namespace braid::reference {

inline double real_part(double x) { return x; }
inline double real_part(const std::complex<double>& x) { return x.real(); }

template <class T>
std::vector<T> softmax(const std::vector<T>& x) {
  double top = -INFINITY;
  for (const T& v : x) top = std::max(top, real_part(v));
  std::vector<T> p;
  T sum{};
  for (const T& v : x) p.push_back(std::exp(v - top)), sum += p.back();
  for (T& v : p) v /= sum;
  return p;
}

template <class T>
T log_sum_exp(const std::vector<T>& x) {
  T sum{};
  for (const T& v : x) sum += std::exp(v - real_part(x[0]));
  return real_part(x[0]) + std::log(sum);
}

template <class T>
std::vector<T> sigmoids(const std::vector<T>& x) {
  std::vector<T> s;
  for (const T& v : x) s.push_back(1.0 / (1.0 + std::exp(-v)));
  return s;
}

/// The `count` best of `ids` by `value`, best first, ties to the one that stands first.
inline std::vector<int32_t> best_of(std::vector<int32_t> ids, const std::vector<double>& value,
                                    int64_t count) {
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return value[static_cast<size_t>(a)] > value[static_cast<size_t>(b)];
  });
  ids.resize(static_cast<size_t>(count));
  return ids;
}

/// The experts one token chooses, by their scores with the bias added.
inline std::vector<int32_t> choose(const std::vector<double>& choice, const RouteOptions& o) {
  const auto E = static_cast<int64_t>(choice.size()), size = E / o.groups;
  std::vector<double> of_group;
  for (int64_t g = 0; g < o.groups; ++g) {
    std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    const bool two = o.group_score == GroupScore::kTop2 && size > 1;
    of_group.push_back(members[0] + (two ? members[1] : 0));
  }
  std::vector<int32_t> groups(static_cast<size_t>(o.groups)), candidates;
  std::iota(groups.begin(), groups.end(), 0);
  const std::vector<int32_t> kept = best_of(groups, of_group, o.kept_groups);
  for (int32_t e = 0; e < E; ++e) {
    if (std::ranges::count(kept, static_cast<int32_t>(e / size)) > 0) candidates.push_back(e);
  }
  return best_of(candidates, choice, o.top_k);
}

/// The scores of all experts for one token; kSelected: the logits.
template <class T>
std::vector<T> route_scores(const std::vector<T>& logits, RouteScore score) {
  if (score == RouteScore::kSelected) return logits;
  return score == RouteScore::kSoftmax ? softmax(logits) : sigmoids(logits);
}

/// The weights of chosen experts, none of them dropped.
template <class T>
std::vector<T> route_weights(const std::vector<T>& logits, const std::vector<int32_t>& chosen,
                             const RouteOptions& o) {
  const std::vector<T> scores = route_scores(logits, o.score);
  std::vector<T> w;
  for (const int32_t e : chosen) w.push_back(scores[static_cast<size_t>(e)]);
  if (o.score == RouteScore::kSelected) w = softmax(w);
  T sum(1e-20);
  for (const T& v : w) sum += v;
  for (T& v : w) v = (o.normalise ? v / sum : v) * static_cast<double>(o.scale);
  return w;
}

template <class T>
struct Routed {
  std::vector<int32_t> chosen, experts;  // (N, k): before and after the limit
  std::vector<T> weights;                // (N, k)
};

/// logits (N, E); bias (E) or empty. The choice looks at real parts.
template <class T>
Routed<T> route(const std::vector<T>& logits, const std::vector<double>& bias, int64_t experts,
                const RouteOptions& o) {
  const auto E = static_cast<size_t>(experts), k = static_cast<size_t>(o.top_k);
  const size_t N = logits.size() / E;
  Routed<T> out;
  for (size_t n = 0; n < N; ++n) {
    const std::vector<T> row(logits.begin() + static_cast<int64_t>(n * E),
                             logits.begin() + static_cast<int64_t>((n + 1) * E));
    std::vector<double> choice;
    for (const T& s : route_scores(row, o.score)) choice.push_back(real_part(s));
    for (size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
    const std::vector<int32_t> chosen = choose(choice, o);
    const std::vector<T> w = route_weights(row, chosen, o);
    out.chosen.insert(out.chosen.end(), chosen.begin(), chosen.end());
    out.weights.insert(out.weights.end(), w.begin(), w.end());
  }
  out.experts = out.chosen;
  if (o.capacity == 0) return out;
  const int64_t limit = std::max<int64_t>(
      4, static_cast<int64_t>(static_cast<double>(N * k) * o.capacity / static_cast<double>(E)));
  std::vector<int64_t> taken(E);
  for (size_t j = 0; j < k; ++j) {
    for (size_t i = j; i < N * k; i += k) {
      if (taken[static_cast<size_t>(out.chosen[i])]++ < limit) continue;
      out.experts[i] = -1;
      out.weights[i] = T{};
    }
  }
  return out;
}

/// 1 where the k-th best choice leads the next by less than `margin`; logits (N, E).
inline std::vector<double> route_uncertain(const std::vector<double>& logits,
                                           const std::vector<double>& bias, int64_t experts,
                                           double margin, RouteOptions o) {
  const auto k = static_cast<size_t>(o.top_k++);
  std::vector<double> uncertain;
  for (auto row = logits.begin(); row != logits.end(); row += experts) {
    std::vector<double> choice = route_scores(std::vector<double>(row, row + experts), o.score);
    for (size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
    const std::vector<int32_t> best = choose(choice, o);
    const auto of = [&](size_t j) { return choice[static_cast<size_t>(best[j])]; };
    uncertain.push_back(of(k - 1) - of(k) < margin);
  }
  return uncertain;
}

/// The sum of the three auxiliary losses, as route/README.md has them, choices held constant.
template <class T>
T route_losses(const std::vector<T>& logits, const std::vector<int32_t>& chosen,
               const std::vector<int64_t>& offsets, int64_t experts, const RouteOptions& o) {
  const auto E = static_cast<size_t>(experts), k = static_cast<size_t>(o.top_k);
  const size_t N = logits.size() / E;
  const auto tokens = static_cast<double>(N);
  std::vector<double> count(E);
  for (const int32_t e : chosen) ++count[static_cast<size_t>(e)];
  T loss{};
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const auto begin = static_cast<size_t>(offsets[s]), end = static_cast<size_t>(offsets[s + 1]);
    std::vector<double> own(E);
    for (size_t i = begin * k; i < end * k; ++i) ++own[static_cast<size_t>(chosen[i])];
    for (size_t n = begin; n < end; ++n) {
      const std::vector<T> row(logits.begin() + static_cast<int64_t>(n * E),
                               logits.begin() + static_cast<int64_t>((n + 1) * E));
      std::vector<T> p = o.score == RouteScore::kSigmoid ? sigmoids(row) : softmax(row);
      T sum{};
      for (const T& v : p) sum += v;
      for (size_t e = 0; e < E; ++e) {
        const double f = count[e] / (tokens * static_cast<double>(k));
        const double of_sequence = own[e] / static_cast<double>((end - begin) * k);
        loss += static_cast<double>(E) * (o.balance_loss * f + o.sequence_loss * of_sequence) *
                p[e] / sum / tokens;
      }
      const T lse = log_sum_exp(row);
      loss += static_cast<double>(o.z_loss) * lse * lse / tokens;
    }
  }
  return loss;
}

}  // namespace braid::reference
