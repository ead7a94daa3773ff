#include <algorithm>
#include <cmath>
#include <numbers>

#include "braid/ops/rope/rope.h"

namespace braid {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

void check_options(const RopeOptions& o) {
  check(o.rotary_dim > 0 && o.rotary_dim % 2 == 0, "rope: rotary_dim is {}, want a positive even",
        o.rotary_dim);
  check(o.theta > 0 && std::isfinite(o.theta), "rope: theta is {}, want a positive number",
        o.theta);
  const bool stretched = o.kind != RopeKind::kDefault && o.kind != RopeKind::kLongRope;
  check(!stretched || (o.factor > 0 && std::isfinite(o.factor)),
        "rope: factor is {}, want a positive number", o.factor);
}

std::vector<double> frequencies(double theta, int64_t rotary_dim) {
  std::vector<double> inv_freq(static_cast<size_t>(rotary_dim / 2));
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    inv_freq[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
  }
  return inv_freq;
}

RopeTable linspace_table(const RopeOptions& o) {
  RopeTable table{.inv_freq = std::vector<double>(static_cast<size_t>(o.rotary_dim / 2), 1.0)};
  for (size_t i = 1; i < table.inv_freq.size(); ++i) {
    table.inv_freq[i] =
        std::pow(o.theta, -static_cast<double>(i) / static_cast<double>(table.inv_freq.size() - 1));
  }
  return table;
}

RopeTable dynamic_table(const RopeOptions& o, int64_t length) {
  check(o.max_position > 0, "rope: dynamic scaling has max_position {}, want a positive number",
        o.max_position);
  check(o.rotary_dim > 2, "rope: dynamic scaling has rotary_dim {}, want more than 2",
        o.rotary_dim);
  const double ratio =
      static_cast<double>(std::max(length, o.max_position)) / static_cast<double>(o.max_position);
  const auto rd = static_cast<double>(o.rotary_dim);
  const double grown = o.factor * ratio - (o.factor - 1.0);
  return {.inv_freq = frequencies(o.theta * std::pow(grown, rd / (rd - 2.0)), o.rotary_dim)};
}

RopeTable llama3_table(const RopeOptions& o) {
  check(o.original_max > 0, "rope: llama3 scaling has original_max {}, want a positive number",
        o.original_max);
  check(o.high_freq > o.low_freq && o.low_freq > 0,
        "rope: llama3 scaling has low_freq {} and high_freq {}, want 0 < low < high", o.low_freq,
        o.high_freq);
  const auto l0 = static_cast<double>(o.original_max);
  RopeTable table{.inv_freq = frequencies(o.theta, o.rotary_dim)};
  for (double& f : table.inv_freq) {
    const double wavelength = kTwoPi / f;
    if (wavelength > l0 / o.low_freq) {
      f /= o.factor;
    } else if (wavelength >= l0 / o.high_freq) {
      const double s = (l0 / wavelength - o.low_freq) / (o.high_freq - o.low_freq);
      f = (1.0 - s) * f / o.factor + s * f;
    }
  }
  return table;
}

double yarn_attention_factor(const RopeOptions& o) {
  const auto mscale = [&](double scale) {
    return o.factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(o.factor) + 1.0;
  };
  if (o.mscale != 0 && o.mscale_all_dim != 0) return mscale(o.mscale) / mscale(o.mscale_all_dim);
  return mscale(1.0);
}

RopeTable yarn_table(const RopeOptions& o) {
  check(o.original_max > 0, "rope: yarn scaling has original_max {}, want a positive number",
        o.original_max);
  check(o.beta_fast > 0 && o.beta_slow > 0 && o.theta != 1.0,
        "rope: yarn scaling has beta_fast {}, beta_slow {}, theta {}, want positive ones and "
        "theta other than 1",
        o.beta_fast, o.beta_slow, o.theta);
  const auto rd = static_cast<double>(o.rotary_dim);
  // The dimension that turns `turns` times over the original context.
  const auto dimension = [&](double turns) {
    return rd * std::log(static_cast<double>(o.original_max) / (turns * kTwoPi)) /
           (2.0 * std::log(o.theta));
  };
  double low = dimension(o.beta_fast), high = dimension(o.beta_slow);
  if (o.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rd - 1.0);
  if (low == high) high += 0.001;
  RopeTable table{.inv_freq = frequencies(o.theta, o.rotary_dim),
                  .attention_factor = o.attention_factor.value_or(yarn_attention_factor(o))};
  for (size_t i = 0; i < table.inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    double& f = table.inv_freq[i];
    f = f / o.factor * ramp + f * (1.0 - ramp);
  }
  return table;
}

RopeTable longrope_table(const RopeOptions& o, int64_t length) {
  check(o.original_max > 1, "rope: longrope has original_max {}, want more than 1", o.original_max);
  const auto& stretch = length > o.original_max ? o.long_factor : o.short_factor;
  check(static_cast<int64_t>(stretch.size()) == o.rotary_dim / 2,
        "rope: longrope has {} factors for {} tokens, want {}", stretch.size(), length,
        o.rotary_dim / 2);
  const auto l0 = static_cast<double>(o.original_max);
  const double factor = o.factor > 0 ? o.factor : static_cast<double>(o.max_position) / l0;
  const double usual = factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(factor) / std::log(l0));
  RopeTable table{.inv_freq = frequencies(o.theta, o.rotary_dim),
                  .attention_factor = o.attention_factor.value_or(usual)};
  for (size_t i = 0; i < stretch.size(); ++i) {
    check(stretch[i] > 0, "rope: longrope factor {} is {}, want a positive number", i, stretch[i]);
    table.inv_freq[i] /= stretch[i];
  }
  return table;
}

}  // namespace

bool depends_on_length(RopeKind kind) {
  return kind == RopeKind::kDynamic || kind == RopeKind::kLongRope;
}

RopeTable make_rope_table(const RopeOptions& options, int64_t length) {
  RopeTable table;
  if (options.kind == RopeKind::kNone) return table;
  check_options(options);
  switch (options.kind) {
    case RopeKind::kNone:
      break;
    case RopeKind::kDefault:
      table.inv_freq = frequencies(options.theta, options.rotary_dim);
      break;
    case RopeKind::kLinear:
      table.inv_freq = frequencies(options.theta, options.rotary_dim);
      for (double& f : table.inv_freq) f /= options.factor;
      break;
    case RopeKind::kDynamic:
      table = dynamic_table(options, length);
      break;
    case RopeKind::kLlama3:
      table = llama3_table(options);
      break;
    case RopeKind::kYarn:
      table = yarn_table(options);
      break;
    case RopeKind::kLinspace:
      table = linspace_table(options);
      break;
    case RopeKind::kLongRope:
      table = longrope_table(options, length);
      break;
  }
  table.interleaved = options.interleaved;
  return table;
}

}  // namespace braid
