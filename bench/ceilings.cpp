#include "bench/ceilings.h"

#include "bench/ceilings_kernels.h"
#include "bench/timing.h"

namespace braid::bench {
namespace {

constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr int64_t kReadTask = int64_t{1} << 20;
constexpr int64_t kSteps = 200'000;

}  // namespace

CeilingProbe::CeilingProbe(Context& ctx, Kind kind)
    : ctx_(ctx), kind_(kind), sums_(ctx.empty({ctx.threads().size(), 16})) {
  if (kind == kRead) {
    memory_ = ctx.zeros({kReadBytes}, DType::kU8);
    work_ = static_cast<double>(kReadBytes);
  } else {
    const double per_step = kind == kBF16 ? bf16_operations_per_step() : f32_operations_per_step();
    work_ = per_step * static_cast<double>(kSteps * ctx.threads().size());
  }
}

void CeilingProbe::run() {
  float* sums = sums_.f32();
  if (kind_ == kRead) {
    const auto* data = static_cast<const uint8_t*>(memory_.raw());
    ctx_.threads().parallel_for(kReadBytes, kReadTask, [&](int64_t begin, int64_t end, int worker) {
      sums[int64_t{worker} * 16] = read_all(data + begin, end - begin);
    });
    return;
  }
  ctx_.threads().parallel_for(ctx_.threads().size(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      sums[i * 16] = kind_ == kBF16 ? bf16_multiply_adds(kSteps) : f32_multiply_adds(kSteps);
    }
  });
}

Ceilings measure_ceilings(Context& ctx) {
  CeilingProbe read(ctx, CeilingProbe::kRead), f32(ctx, CeilingProbe::kF32),
      bf16(ctx, CeilingProbe::kBF16);
  const std::vector<std::function<void()>> bodies = {[&] { read.run(); }, [&] { f32.run(); },
                                                     [&] { bf16.run(); }};
  const std::vector<double> seconds = interleaved_medians(bodies, 7);
  return {.read_bytes_per_second = read.work() / seconds[0],
          .f32_flops_per_second = f32.work() / seconds[1],
          .bf16_flops_per_second = bf16.work() / seconds[2]};
}

}  // namespace braid::bench
