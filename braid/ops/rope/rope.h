#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/core/tensor.h"

namespace braid {

/// How the frequencies are stretched for contexts beyond the trained one.
enum class RopeKind : uint8_t {
  kNone,
  kDefault,
  kLinear,
  kDynamic,
  kYarn,
  kLlama3,
  kLongRope,
  kLinspace
};

struct RopeOptions {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;    // base of the geometric row of frequencies
  int64_t rotary_dim = 0;    // the first dimensions of a head that turn; even; the rest pass
  bool interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + rotary_dim / 2)
  double factor = 1.0;       // stretch; <= 0 with longrope: max_position / original_max
  int64_t original_max = 0;  // L0: the context before stretching (llama3, yarn, longrope)
  int64_t max_position = 0;  // dynamic: the context below which nothing changes
  double low_freq = 1.0, high_freq = 4.0;         // llama3
  double beta_fast = 32.0, beta_slow = 1.0;       // yarn
  bool truncate = true;                           // yarn: whole bounds of the ramp
  double mscale = 0.0, mscale_all_dim = 0.0;      // yarn: attention factor as a quotient, if both
  std::optional<double> attention_factor;         // on cos and sin; else as the kind says
  std::vector<double> short_factor, long_factor;  // longrope: (rotary_dim / 2) each

  friend bool operator==(const RopeOptions&, const RopeOptions&) = default;
};

/// One scale: the frequencies of the pairs and the factor on cosine and sine.
struct RopeTable {
  std::vector<double> inv_freq;  // (rotary_dim / 2); empty: nothing turns
  double attention_factor = 1.0;
  bool interleaved = false;
};

/// True where the table depends on the length it is made for.
bool depends_on_length(RopeKind kind);

/// `length` is the number of tokens the scaling should fit; only dynamic and longrope look at it.
///
///   default   f_i = theta^(-2 i / rd)
///   linear    f_i / factor
///   dynamic   theta' = theta (factor L / Lmax - (factor - 1))^(rd / (rd - 2)) where L > Lmax
///   llama3    wavelength 2 pi / f_i: above L0 / low f_i / factor, below L0 / high f_i, else
///   between yarn      f_i / factor and f_i mixed along a ramp over i, times 0.1 ln(factor) + 1
///   linspace  theta^(-i / (rd / 2 - 1)): both ends 1 and 1 / theta are taken (RetNet)
///   longrope  f_i / short_i, or f_i / long_i where L > L0, times sqrt(1 + ln(factor) / ln(L0))
///
/// Sources: arXiv 2104.09864, 2306.15595, 2309.00071 (yarn), 2402.13753 (longrope); names and
/// corner cases follow Hugging Face transformers `modeling_rope_utils.py`; linspace is that of
/// microsoft/torchscale `RetNetRelPos`.
RopeTable make_rope_table(const RopeOptions& options, int64_t length);

/// Cosine and sine of every token's angles; made once for a batch and shared by all layers.
struct RopeAngles {
  Tensor cos, sin;  // (N, rotary_dim / 2), the attention factor included; undefined: nothing turns
  bool interleaved = false;
};

/// angle = position * inv_freq, product and reduction in float64, so that a position of 2^40 is
/// still good to 2^-13.
RopeAngles rope_angles(Context& ctx, const RopeTable& table, const SequenceBatch& batch);

/// As above with the table made here. `context` > 0 fixes the scale (a declared maximum, for cached
/// decoding); with 0 each sequence is scaled for its own end, starts[s] + length(s).
RopeAngles rope_angles(Context& ctx, const RopeOptions& options, const SequenceBatch& batch,
                       int64_t context = 0);

/// Turns each pair (a, b) of each head to (a cos - b sin, b cos + a sin).
///   x  (N, H, hd) or (N, H * hd), float32, rows may be strided; y has its shape, contiguous.
/// The dimensions of a head before `first` and those after the rotary ones pass.
/// Records its vjp, which turns back. Without angles returns x.
Tensor rope(Context& ctx, const Tensor& x, int64_t heads, const RopeAngles& angles,
            int64_t first = 0);
Tensor rope(Context& ctx, const Tensor& x, const SequenceBatch& batch, int64_t heads,
            const RopeTable& table);

}  // namespace braid
