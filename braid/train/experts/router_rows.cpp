#include "braid/train/experts/router_rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "braid/core/error.h"

namespace braid {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// x v, (S)
Vector times(const Tensor& x, const Vector& v) {
  const int64_t S = x.dim(0), D = x.dim(1);
  Vector out(static_cast<size_t>(S));
  for (int64_t s = 0; s < S; ++s) {
    const float* row = x.f32() + s * D;
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += static_cast<double>(row[d]) * v[static_cast<size_t>(d)];
    out[static_cast<size_t>(s)] = sum;
  }
  return out;
}

// x^T v, (D)
Vector transposed_times(const Tensor& x, const Vector& v) {
  const int64_t S = x.dim(0), D = x.dim(1);
  Vector out(static_cast<size_t>(D));
  for (int64_t s = 0; s < S; ++s) {
    const float* row = x.f32() + s * D;
    const double factor = v[static_cast<size_t>(s)];
    if (factor == 0) continue;
    for (int64_t d = 0; d < D; ++d) out[static_cast<size_t>(d)] += factor * row[d];
  }
  return out;
}

// Both kinds of tokens count the same, whatever their number.
Vector balanced_weights(const std::vector<bool>& member) {
  const auto members = static_cast<double>(std::count(member.begin(), member.end(), true));
  const double others = static_cast<double>(member.size()) - members;
  Vector weight(member.size());
  for (size_t s = 0; s < member.size(); ++s) {
    weight[s] = 1 / std::max(1.0, member[s] ? members : others);
  }
  return weight;
}

double merged_logit(RouteScore score, double a, double b, bool chose_a, bool chose_b, double lift) {
  if (chose_a != chose_b) return chose_a ? a : b;
  const double high = std::max(a, b), low = std::min(a, b);
  if (!chose_a) return high;
  if (score != RouteScore::kSigmoid) return high + std::log1p(std::exp(low - high)) + lift;
  const double sum = std::min(kSigmoidSum, 1 / (1 + std::exp(-a)) + 1 / (1 + std::exp(-b)));
  return std::max(high, std::log(sum / (1 - sum))) + lift;
}

// The direction of largest variance of the rows of x, whose mean is `mean`, by power iteration.
Vector principal_direction(const Tensor& x, const Vector& member, const Vector& mean,
                           const Rng& rng) {
  constexpr int kIterations = 30;
  Vector direction(mean.size());
  for (size_t d = 0; d < direction.size(); ++d) direction[d] = rng.normal(d);
  const double count = std::accumulate(member.begin(), member.end(), 0.0);
  for (int i = 0; i < kIterations; ++i) {
    const double length = std::sqrt(dot(direction, direction));
    if (!(length > 0)) break;  // all rows are equal: any direction does
    for (double& v : direction) v /= length;
    Vector along = times(x, direction);
    const double middle = dot(mean, direction);
    for (size_t s = 0; s < along.size(); ++s) along[s] = member[s] * (along[s] - middle);
    // sum_s (x_s - mean) along_s; the second term is 0 but for rounding.
    direction = transposed_times(x, along);
    for (double& v : direction) v /= count;
  }
  return direction;
}

// The element that a share of the others lie below.
double quantile(Vector values, double share) {
  const auto at = static_cast<int64_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

// By how much expert e's logit lies above the best one that was not chosen, in the tokens that
// chose e.
Vector margins(const RouterSample& sample, int64_t e) {
  Vector all;
  for (int64_t s = 0; s < sample.rows(); ++s) {
    if (!sample.chose(s, e)) continue;
    double best = -INFINITY;
    for (int64_t other = 0; other < sample.experts(); ++other) {
      if (!sample.chose(s, other)) best = std::max<double>(best, sample.logit(s, other));
    }
    if (std::isfinite(best)) all.push_back(std::max(0.0, sample.logit(s, e) - best));
  }
  return all;
}

}  // namespace

int64_t RouterSample::load(int64_t e) const {
  int64_t tokens = 0;
  for (int64_t s = 0; s < rows(); ++s) tokens += chose(s, e);
  return tokens;
}

std::vector<float> fit_row(const Tensor& x, std::span<const float> row,
                           std::span<const double> target, std::span<const double> weight) {
  const auto D = static_cast<size_t>(x.dim(1)), S = static_cast<size_t>(x.dim(0));
  check(row.size() == D && target.size() == S && weight.size() == S,
        "fit_row: a row of {}, {} targets and {} weights, want {}, {} and {}", row.size(),
        target.size(), weight.size(), D, S, S);
  Vector residual = times(x, Vector(row.begin(), row.end()));
  double energy = 0;
  for (size_t s = 0; s < S; ++s) {
    residual[s] = weight[s] * (target[s] - residual[s]);
    const float* values = x.f32() + s * D;
    for (size_t d = 0; d < D; ++d) energy += weight[s] * static_cast<double>(values[d]) * values[d];
  }
  const double ridge = kRidge * energy / static_cast<double>(D);
  // (x^T W x + ridge) change = x^T residual
  Vector change(D), r = transposed_times(x, residual), direction = r;
  double size = dot(r, r);
  const double enough = 1e-16 * size;
  for (size_t i = 0; i < D && size > enough; ++i) {
    Vector image = times(x, direction);
    for (size_t s = 0; s < S; ++s) image[s] *= weight[s];
    image = transposed_times(x, image);
    for (size_t d = 0; d < D; ++d) image[d] += ridge * direction[d];
    const double step = size / dot(direction, image);
    for (size_t d = 0; d < D; ++d) change[d] += step * direction[d];
    for (size_t d = 0; d < D; ++d) r[d] -= step * image[d];
    const double next = dot(r, r);
    for (size_t d = 0; d < D; ++d) direction[d] = r[d] + next / size * direction[d];
    size = next;
  }
  std::vector<float> fitted(D);
  for (size_t d = 0; d < D; ++d) fitted[d] = static_cast<float>(row[d] + change[d]);
  return fitted;
}

std::vector<float> fold_rows(const RouterSample& sample, RouteScore score, int64_t i, int64_t j,
                             std::span<const float> base, double lift) {
  const auto S = static_cast<size_t>(sample.rows());
  Vector target(S);
  std::vector<bool> member(S);
  for (size_t s = 0; s < S; ++s) {
    const auto row = static_cast<int64_t>(s);
    const bool a = sample.chose(row, i), b = sample.chose(row, j);
    member[s] = a || b;
    target[s] = merged_logit(score, sample.logit(row, i), sample.logit(row, j), a, b, lift);
  }
  return fit_row(sample.x, base, target, balanced_weights(member));
}

SplitRows split_rows(const RouterSample& sample, int64_t e, std::span<const float> row,
                     const Rng& rng) {
  const auto S = static_cast<size_t>(sample.rows());
  Vector mask(S);
  std::vector<bool> member(S);
  for (size_t s = 0; s < S; ++s) {
    member[s] = sample.chose(static_cast<int64_t>(s), e);
    mask[s] = member[s] ? 1 : 0;
  }
  const double count = std::accumulate(mask.begin(), mask.end(), 0.0);
  check(count > 0, "split: expert {} was chosen by no token of the sample, want one that is used",
        e);
  Vector mean = transposed_times(sample.x, mask);
  for (double& v : mean) v /= count;
  const Vector along = times(sample.x, principal_direction(sample.x, mask, mean, rng));
  Vector of_members;
  for (size_t s = 0; s < S; ++s) {
    if (member[s]) of_members.push_back(along[s]);
  }
  const double middle = quantile(of_members, 0.5);
  const Vector gaps = margins(sample, e);
  constexpr double kLeastMargin = 0.1;
  SplitRows split{.margin = std::max(kLeastMargin, gaps.empty() ? 0 : quantile(gaps, 0.9))};

  Vector first(S), second(S);
  for (size_t s = 0; s < S; ++s) {
    const double z = sample.logit(static_cast<int64_t>(s), e);
    const bool to_first = along[s] > middle;
    first[s] = to_first ? z : z - split.margin;
    second[s] = to_first ? z - split.margin : z;
  }
  const Vector weight = balanced_weights(member);
  split.first = fit_row(sample.x, row, first, weight);
  split.second = fit_row(sample.x, row, second, weight);
  return split;
}

}  // namespace braid
