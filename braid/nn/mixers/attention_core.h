#pragma once

#include "braid/nn/sublayer.h"
#include "braid/ops/attention/attention.h"

namespace braid {

/// The rotary options of a spec: rope (default | none | linear | dynamic | yarn | llama3 |
/// longrope), theta, partial, interleaved, factor, original, low, high, beta_fast, beta_slow,
/// truncate, mscale, mscale_all_dim, attention_factor, short, long, max. Refuses the impossible.
RopeOptions read_rope(SpecOptions& options, int64_t head_dim, bool interleaved = false);

/// Softmax attention between its projections: heads, rotary positions, keys and values kept.
///
/// Reads the options heads, kv, dim, scale and the rotary ones.
/// State: k, v (Hkv hd) a token in the model's dtype; pages without end, or a ring of W.
class AttentionCore {
 public:
  struct Options {
    int64_t width = 0;           // dim is width / heads where it is not written
    bool windowed = false;       // the first positional option is the window
    double scale_per_dim = 1.0;  // scale is (scale_per_dim * dim)^-0.5 where it is not written
  };

  AttentionCore() = default;
  AttentionCore(const SublayerConfig& config, SpecOptions& options, const Options& defaults);

  /// q (N, H hd), k and v (N, Hkv hd) -> (N, H hd)
  Tensor forward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, Stream& stream,
                 const LayerState* state) const;
  StateSpec state_spec() const;

  int64_t head_dim() const { return head_dim_; }
  int64_t q_width() const { return attention_.heads * head_dim_; }
  int64_t kv_width() const { return attention_.kv_heads * head_dim_; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
  /// The columns of q, k and v in one projection of them all.
  std::vector<Tensor> split(Context& ctx, const Tensor& qkv) const;

 private:
  AttentionOptions attention_;
  int64_t head_dim_ = 0;
  RopeOptions rope_;
  DType state_dtype_ = DType::kF32;
};

}  // namespace braid
