#pragma once

#include <functional>
#include <vector>

#include "braid/core/context.h"

namespace braid::bench {

/// What this machine can do with all threads of a context, measured, not looked up.
struct Ceilings {
  double read_bytes_per_second;  // streaming over memory far larger than the caches
  double f32_flops_per_second;   // fused multiply-adds on registers, two operations each
  double bf16_flops_per_second;  // pair dot products, four each, or f32's: what products use
};

/// The bodies of which the medians give the ceilings, with the work of one call, so that they can
/// be interleaved with what is compared to them.
struct CeilingProbe {
  enum Kind { kRead, kF32, kBF16 };
  CeilingProbe(Context& ctx, Kind kind);
  void run();
  double work() const { return work_; }  // bytes or operations of one run

 private:
  Context& ctx_;
  Kind kind_;
  double work_;
  Tensor memory_, sums_;
};

Ceilings measure_ceilings(Context& ctx);

}  // namespace braid::bench
