#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "braid/core/context.h"
#include "braid/ops/linear/weight.h"

namespace braid {

/// The function between an expert's two matrices. Gated: in (2F, D), the gate's rows first, and
/// h = silu(gate) * up; plain: in (F, D) and h = act(in x). Gelu is the exact form.
enum class ExpertActivation : uint8_t { kSwiglu, kRelu2, kRelu, kGelu, kSilu };

/// One expert: out (D, F) applied to the activation of in.
struct Expert {
  Weight in, out;
};

/// E experts: a run of them, which must outlive the list, or a count and a function that gives the
/// one asked for. Only experts that are hit are asked for (and the first, for its shapes).
class ExpertList {
 public:
  using At = std::function<Expert(int64_t)>;

  ExpertList() = default;
  template <class Run>
  requires std::convertible_to<const Run&, std::span<const Expert>> ExpertList(const Run& run)
      : run_(run), size_(std::ssize(run_)) {}  // NOLINT: implicit
  ExpertList(int64_t size, At at) : at_(std::move(at)), size_(size) {}

  int64_t size() const { return size_; }
  Expert operator[](int64_t e) const { return at_ ? at_(e) : run_[static_cast<size_t>(e)]; }

 private:
  std::span<const Expert> run_;
  At at_;
  int64_t size_ = 0;
};

/// y[n] = sum_j weights[n, j] f(x[n]; experts[ids[n, j]]), slots j in ascending order.
///
/// x (N, D) f32, rows may be strided; ids (N, k) i32, -1 for none; weights (N, k) f32; all experts
/// of one shape and dtype; y (N, D) f32. Tokens are grouped by expert: many run as one product an
/// expert, few as matrix-vector products, and only the weights of experts that are hit are read.
/// A row of y depends on nothing but its own x, ids and weights, bit for bit: the products are
/// those of `linear`, the sum is one chain of multiply-adds from zero over the slots that have an
/// expert. vjp: x, weights, and in and out of every expert that was hit (the others' gradient is
/// absent). Throws Error(kUsage) where shapes do not fit or an id is outside -1..E-1.
Tensor experts(Context& ctx, const Tensor& x, const Tensor& ids, const Tensor& weights,
               const ExpertList& experts, ExpertActivation activation);

/// The inner step alone, for rows that lie sorted by expert: y[m] = f(x[m]; experts[e]) for the
/// rows offsets[e] <= m < offsets[e + 1]. Same bits a row as above. Not recorded on the tape.
Tensor expert_rows(Context& ctx, const Tensor& x, std::span<const int64_t> offsets,
                   const ExpertList& experts, ExpertActivation activation);

/// The outer step alone: y[n] = sum_j weights[n, j] rows[place[n, j]], which over what
/// `expert_rows` gives is `experts`, bit for bit. rows (M, D) f32 dense; place (N, k) i32 dense, -1
/// for none; weights (N, k) f32. Not recorded on the tape. Throws Error(kUsage) where shapes do not
/// fit or a place is outside -1..M-1.
Tensor combine_expert_rows(Context& ctx, const Tensor& rows, const Tensor& place,
                           const Tensor& weights);

}  // namespace braid
