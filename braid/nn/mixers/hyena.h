#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/long_conv/long_conv.h"

namespace braid {

/// Hyena: gates and convolutions as long as the sequence, in turn.
///
///   [x_0 | ... | x_{n-1} | v] = short_conv(u W_in^T + b)           n: the order
///   v <- long_conv(v * x_i; k_o, d_o),  i = n-1 .. 1, o = n-1-i;   y = (v * x_0) W_out^T + b
///
/// The filters are functions of the position t = i / (max - 1), with features z_i that start as
/// [t, cos(f w), -sin(f w)], w = 2 pi i / max, and are trained, and fixed rates a_c:
///
///   k_o[i, c] = MLP(z_i)[c (n - 1) + o] * (exp(-t |a|) + shift),  sines of one learned frequency
///
/// Options: max (8192: the taps, and the longest sequence; it scales t, so another value is another
/// filter), order (2, 2..4), filter_order (64), emb (3, odd: width of z), w (1: first frequency),
/// inner (2: layers of the MLP between its first and its last), shift (0), short (3).
/// Parameters carry the names of safari; those of the filter stay float32 in a bfloat16 model.
///
/// State: the short convolution's inputs, fixed, and per long convolution a block (2, 64, D) and
/// pages of spectra that grow by 2 D floats a token: what attention with float32 keys and values of
/// width D keeps. Positions from `max` on are refused: the filter has no taps for them.
///
/// Without training the filters are made once, for all positions, at the first call (a lock is held
/// meanwhile), and kept: 8 max D (n - 1) bytes. With trainable parameters they are made in every
/// call, as long as its longest sequence.
/// Source: Poli et al., arXiv:2302.10866; HazyResearch/safari `HyenaOperator`, `HyenaFilter`.
class HyenaMixer final : public Sublayer {
 public:
  HyenaMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  // k (rows, D) and d (D) of one convolution.
  struct Taps {
    Tensor k, d;
  };
  int64_t convolutions() const { return order_ - 1; }
  bool trainable() const { return filter_bias_.value.grad_id() != 0; }
  Tensor mlp(Context& ctx, int64_t rows) const;
  Tensor window(Context& ctx, int64_t rows) const;
  std::vector<Taps> make_taps(Context& ctx, int64_t rows) const;
  std::vector<LongConvFilter> make_filters(Context& ctx, int64_t rows) const;
  std::vector<LongConvFilter> filters(Context& ctx, int64_t rows) const;
  std::vector<LongConvState> states_of(const LayerState& state, size_t o) const;

  int64_t width_, order_, max_, short_width_;
  float shift_;
  Linear in_proj_, out_proj_;
  Parameter short_weight_, short_bias_, filter_bias_, z_, frequency_;
  std::vector<Parameter> mlp_weights_, mlp_biases_;  // the last layer has no bias

  // Made at the first call that may keep them, for the values of `z` they were made from.
  mutable std::mutex mutex_;
  mutable std::vector<LongConvFilter> kept_;
  mutable std::shared_ptr<Storage> kept_for_;
};

}  // namespace braid
