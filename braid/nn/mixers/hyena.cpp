#include "braid/nn/mixers/hyena.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/long_conv/kernels.h"
#include "braid/ops/short_conv/short_conv.h"
#include "braid/ops/sine/sine.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

// The window falls to 1 % of its start at 30 % of the sequence in the quickest channel, and at
// 150 % in the slowest.
constexpr double kTarget = 0.01, kFastShare = 0.3, kSlowShare = 1.5;

// z (max, emb)
Initializer init_positions(int64_t max, int64_t emb) {
  return [=](std::span<float> values, const Rng&) {
    const int64_t bands = (emb - 1) / 2;
    for (int64_t i = 0; i < max; ++i) {
      float* z = values.data() + i * emb;
      const auto at = static_cast<double>(i);
      z[0] = static_cast<float>(at / static_cast<double>(max - 1));
      const double w = 2 * std::numbers::pi * at / static_cast<double>(max);
      for (int64_t b = 0; b < bands; ++b) {
        const double last = static_cast<double>(bands - 1), first = 1e-4;
        const double f =
            bands == 1 ? first : first + (last - first) * static_cast<double>(b) / last;
        z[1 + b] = static_cast<float>(std::cos(f * w));
        z[1 + bands + b] = static_cast<float>(-std::sin(f * w));
      }
    }
  };
}

// As torch draws a linear layer of `in` inputs, and a convolution of as many taps.
Initializer init_layer(int64_t in) {
  const float bound = 1.0f / std::sqrt(static_cast<float>(in));
  return init_uniform(-bound, bound);
}

// A float32 matrix for one call: filters keep their precision whatever the model's matrices are in.
Weight as_weight(Context& ctx, const Tensor& matrix) {
  return Weight::make(ctx, matrix, {.trainable = Tape::tracks(matrix)});
}

// Rows o, o + step, ... of x.
Tensor every_row(Context& ctx, const Tensor& x, int64_t o, int64_t step) {
  if (step == 1) return x;
  std::vector<int64_t> rows;
  for (int64_t i = o; i < x.rows(); i += step) rows.push_back(i);
  return gather_rows(ctx, x, rows);
}

Tensor first_rows(Context& ctx, const Tensor& x, int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return gather_rows(ctx, x, rows);
}

}  // namespace

HyenaMixer::HyenaMixer(const SublayerConfig& config, SpecOptions& options) : width_(config.width) {
  const int64_t D = width_;
  order_ = options.integer("order", 2, 2, 4);
  max_ = options.integer("max", 8192, 2, int64_t{1} << 24);
  short_width_ = options.integer("short", 3, 2, kShortConvMaxWidth);
  shift_ = static_cast<float>(options.number("shift", 0));
  const int64_t F = options.integer("filter_order", 64, 1, 4096);
  const int64_t emb = options.integer("emb", 3, 3, 1025);
  if (emb % 2 == 0) options.refuse("emb", "an odd number");
  const int64_t inner = options.integer("inner", 2, 0, 16);
  const auto w = static_cast<float>(options.number("w", 1));

  const int64_t channels = (order_ + 1) * D, outputs = convolutions() * D;
  in_proj_ = Linear("in_proj", D, channels, true, projection_init(D));
  out_proj_ = Linear("out_proj", D, D, true, residual_init(D, config.count));
  short_weight_ = {.name = "short_filter.weight",
                   .shape = {channels, short_width_},
                   .init = init_layer(short_width_)};
  short_bias_ = {
      .name = "short_filter.bias", .shape = {channels}, .init = init_layer(short_width_)};
  filter_bias_ = {.name = "filter_fn.bias", .shape = {outputs}, .init = init_normal(1)};
  z_ = {.name = "filter_fn.pos_emb.z", .shape = {max_, emb}, .init = init_positions(max_, emb)};
  frequency_ = {.name = "filter_fn.implicit_filter.1.freq", .shape = {F}, .init = init_constant(w)};
  for (int64_t i = 0; i < inner + 2; ++i) {
    const std::string name = "filter_fn.implicit_filter." + std::to_string(2 * i);
    const int64_t in = i == 0 ? emb : F, out = i == inner + 1 ? outputs : F;
    mlp_weights_.push_back({.name = name + ".weight", .shape = {out, in}, .init = init_layer(in)});
    if (i == inner + 1) break;
    mlp_biases_.push_back({.name = name + ".bias", .shape = {out}, .init = init_layer(in)});
  }
}

// The features (rows, F) that every filter is a linear map of.
Tensor HyenaMixer::mlp(Context& ctx, int64_t rows) const {
  Tensor h = first_rows(ctx, z_.value, rows);
  for (size_t i = 0; i < mlp_biases_.size(); ++i) {
    h = linear(ctx, h, as_weight(ctx, mlp_weights_[i].value), mlp_biases_[i].value);
    h = sine(ctx, h, frequency_.value);
  }
  return h;
}

// exp(-t |a|) + shift, (rows, D (n - 1)), in the order of the MLP's outputs.
Tensor HyenaMixer::window(Context& ctx, int64_t rows) const {
  const int64_t outputs = convolutions() * width_;
  const double slow = std::log(kTarget) / kSlowShare, fast = std::log(kTarget) / kFastShare;
  std::vector<float> rates(static_cast<size_t>(outputs));
  for (int64_t c = 0; c < outputs; ++c) {
    const double share =
        static_cast<double>(c) / static_cast<double>(std::max<int64_t>(1, outputs - 1));
    rates[static_cast<size_t>(c)] = static_cast<float>(slow + (fast - slow) * share);
  }
  Tensor exponents = ctx.empty({rows, outputs});
  for (int64_t i = 0; i < rows; ++i) {
    const auto t = static_cast<float>(static_cast<double>(i) / static_cast<double>(max_ - 1));
    float* row = exponents.f32() + i * outputs;
    for (size_t c = 0; c < rates.size(); ++c) row[c] = t * rates[c];
  }
  Tensor y = activation(ctx, exponents, Activation::kExp);
  if (shift_ != 0) {
    for (int64_t i = 0; i < y.count(); ++i) y.f32()[i] += shift_;
  }
  return y;
}

std::vector<HyenaMixer::Taps> HyenaMixer::make_taps(Context& ctx, int64_t rows) const {
  const int64_t count = convolutions();
  const Tensor features = mlp(ctx, rows), envelope = window(ctx, rows);
  const Tensor bias = reshape(ctx, filter_bias_.value, {count * width_, 1});
  std::vector<Taps> taps;
  for (int64_t o = 0; o < count; ++o) {
    const Tensor matrix = every_row(ctx, mlp_weights_.back().value, o, count);
    // The columns of convolution o lie apart, like the rows of its matrix.
    Tensor columns = envelope;
    if (count > 1) {
      columns = ctx.empty({rows, width_});
      for (int64_t i = 0; i < rows * width_; ++i) {
        columns.f32()[i] = envelope.f32()[i * count + o];
      }
    }
    const Tensor k = linear(ctx, features, as_weight(ctx, matrix));
    taps.push_back({.k = multiply(ctx, k, columns),
                    .d = reshape(ctx, every_row(ctx, bias, o, count), {width_})});
  }
  return taps;
}

std::vector<LongConvFilter> HyenaMixer::make_filters(Context& ctx, int64_t rows) const {
  std::vector<LongConvFilter> filters;
  for (const Taps& taps : make_taps(ctx, rows)) {
    filters.push_back(LongConvFilter::make(ctx, taps.k, taps.d));
  }
  return filters;
}

std::vector<LongConvFilter> HyenaMixer::filters(Context& ctx, int64_t rows) const {
  if (trainable()) return make_filters(ctx, rows);
  const std::lock_guard lock(mutex_);
  if (kept_for_ != z_.value.storage()) {
    kept_ = make_filters(ctx, max_);
    kept_for_ = z_.value.storage();
  }
  return kept_;
}

Tensor HyenaMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                           const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  int64_t end = 1;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t start = state == nullptr ? 0 : batch.starts[static_cast<size_t>(s)];
    end = std::max(end, start + batch.length(s));
  }
  check(end <= max_, "hyena: a sequence of {} tokens, want at most the {} that max gives taps for",
        end, max_);
  const Tensor projected = in_proj_.forward(ctx, x);
  const Tensor convolved =
      state == nullptr
          ? short_conv(ctx, projected, short_weight_.value, short_bias_.value, {}, batch).y
          : short_conv_in_place(ctx, projected, short_weight_.value, short_bias_.value,
                                state->fixed(0), batch);
  const std::vector<int64_t> widths(static_cast<size_t>(order_ + 1), width_);
  const std::vector<Tensor> parts = split_columns(ctx, convolved, widths);

  // Taps up to a whole block: no bit of an output then depends on the longest sequence.
  const int64_t rows = std::min(max_, (end + kLongConvBlock - 1) / kLongConvBlock * kLongConvBlock);
  const bool plain = state == nullptr && (ctx.tape() != nullptr || ctx.form() != Form::kAuto);
  Tensor v = parts.back();
  std::vector<Taps> taps;
  std::vector<LongConvFilter> prepared;
  for (size_t o = 0; o < static_cast<size_t>(convolutions()); ++o) {
    v = multiply(ctx, v, parts[static_cast<size_t>(order_ - 1) - o]);
    if (plain) {
      if (o == 0) taps = make_taps(ctx, rows);
      v = long_conv(ctx, v, taps[o].k, taps[o].d, batch);
      continue;
    }
    if (o == 0) prepared = filters(ctx, rows);
    v = state == nullptr ? long_conv(ctx, v, prepared[o], batch)
                         : long_conv(ctx, v, prepared[o], batch, states_of(*state, o));
  }
  return out_proj_.forward(ctx, multiply(ctx, v, parts[0]));
}

std::vector<LongConvState> HyenaMixer::states_of(const LayerState& state, size_t o) const {
  const std::vector<float*> blocks = state.fixed(1 + 2 * o);
  const std::vector<PageTable> spectra = state.pages(2 + 2 * o);
  std::vector<LongConvState> states;
  for (size_t s = 0; s < blocks.size(); ++s) {
    states.push_back({.block = blocks[s], .spectra = spectra[s]});
  }
  return states;
}

StateSpec HyenaMixer::state_spec() const {
  StateSpec spec{{.name = "short", .shape = {short_width_ - 1, (order_ + 1) * width_}}};
  for (int64_t o = 0; o < convolutions(); ++o) {
    spec.push_back({.name = "block" + std::to_string(o), .shape = {2, kLongConvBlock, width_}});
    spec.push_back(
        {.name = "spectra" + std::to_string(o), .kind = SlotKind::kGrowing, .shape = {2 * width_}});
  }
  return spec;
}

std::vector<Parameter*> HyenaMixer::parameters() {
  std::vector<Parameter*> out;
  in_proj_.collect(out);
  out.insert(out.end(), {&short_weight_, &short_bias_, &filter_bias_, &z_, &frequency_});
  for (size_t i = 0; i < mlp_weights_.size(); ++i) {
    out.push_back(&mlp_weights_[i]);
    if (i < mlp_biases_.size()) out.push_back(&mlp_biases_[i]);
  }
  out_proj_.collect(out);
  return out;
}

double HyenaMixer::matmul_flops() const {
  return in_proj_.matmul_flops() + out_proj_.matmul_flops();
}

}  // namespace braid
