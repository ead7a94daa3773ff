#pragma once

#include <cstdint>
#include <memory>

#include "braid/core/dtype.h"

namespace braid::bench {

/// The bar for matrix products: oneDNN with its own packed weights, rows cut into one slab per
/// worker, one thread in each, so that it uses the machine as we do. c (m, n) = a (m, k) b^T in
/// `dtype` with float32 sums; for bfloat16 `run` includes the conversion of a.
class OneDnnLinear {
 public:
  /// False where the benchmark was built without oneDNN.
  static bool available();

  OneDnnLinear(int workers, int64_t m, int64_t n, int64_t k, DType dtype, const float* a,
               const float* b, float* c);
  ~OneDnnLinear();
  void run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace braid::bench
