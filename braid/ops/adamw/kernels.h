#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct AdamWDims {
  int64_t count;
  float gradient_scale, beta1, beta2, eps;
  float keep;           // 1 - lr weight_decay
  float step_size;      // lr / (1 - beta1^step)
  float inverse_bias2;  // 1 / sqrt(1 - beta2^step)
};

struct SumSquaresDims {
  int64_t count;
  static constexpr int64_t kBlock = 16384;
  int64_t blocks() const { return (count + kBlock - 1) / kBlock; }
};

namespace cpu {

void adamw(ThreadPool& threads, const AdamWDims& dims, const float* g, float* p, float* m,
           float* v);
/// Adds the sum of squares of x to total (1); `partial` is scratch of (blocks).
void sum_squares(ThreadPool& threads, const SumSquaresDims& dims, const float* x, double* partial,
                 double* total);

}  // namespace cpu
}  // namespace braid
