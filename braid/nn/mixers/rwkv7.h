#pragma once

#include "braid/nn/low_rank.h"
#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// RWKV-7 "Goose" time mixing: linear attention whose state forgets by channel and unlearns by key.
///
///   x_m = x_t + mu_m (x_{t-1} - x_t)  for m = r, w, k, v, a, g
///   r, k, v = x_r R^T, x_k K^T, x_v V^T          gate = g2 sigmoid(g1 x_g)
///   decay = w0 + w2 tanh(w1 x_w)                 rate = a0 + a2 (a1 x_a)
///   v <- v + (v_first - v) sigmoid(v0 + v2 (v1 x_v))   but in the first such sublayer of a stack,
///                                                      which publishes its v as "v_first"
///   y = wkv7_output(wkv7(wkv7_inputs(...))),  out = y O^T
///
/// Options: head (P, 64), the ranks w, a, v, g of the low-rank maps (the authors' 2.5, 2.5, 1.7 and
/// 5 sqrt(D), rounded to 32s), eps of a head's normalised reading (64e-5, whatever P is).
/// Parameters carry the names of RWKV-LM; its matrices w1, w2 and so on are (out, in) here. State:
/// shift (D) and wkv (H, P, P), keys by values, float32.
///
/// Source: Peng et al., arXiv:2503.14456; RWKV-LM `RWKV-v7`, its initialisation included.
class Rwkv7Mixer final : public Sublayer {
 public:
  Rwkv7Mixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

  static constexpr std::string_view kFirstValues = "v_first";

 private:
  static constexpr size_t kStreams = 6;  // r w k v a g

  int64_t width_, head_dim_, heads_ = 0;
  bool first_;
  float eps_;
  Parameter mu_[kStreams];
  Parameter k_k_, k_a_, r_k_, norm_weight_, norm_bias_;
  Linear receptance_, key_, value_, output_;
  LowRank decay_, rate_, mix_, gate_;
};

}  // namespace braid
