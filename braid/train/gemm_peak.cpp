#include "braid/train/gemm_peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "braid/core/rng.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/linear/weight.h"

namespace braid {

double measure_gemm_flops(Context& ctx, DType weight_dtype) {
  constexpr int64_t kSize = 1024;
  constexpr int kRuns = 8;
  const Rng rng(1);
  std::vector<float> values(kSize * kSize);
  for (size_t i = 0; i < values.size(); ++i) values[i] = rng.uniform(i) - 0.5f;
  const Tensor x = ctx.to_device(host_tensor(std::move(values), {kSize, kSize}));
  const Weight w = Weight::make(ctx, x, {.packed_dtype = weight_dtype});
  double best_s = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const Tensor y = linear(ctx, x, w);
    ctx.api().synchronize();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best_s = std::min(best_s, time.count());
  }
  return 2.0 * kSize * kSize * kSize / best_s;
}

}  // namespace braid
