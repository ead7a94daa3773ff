// What the CUDA kernels reach, beside what a plain copy reaches on the same device in the same run.
// Times are medians of launches measured with events, on data several times the size of the L2.

#include <cuda_runtime.h>
#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/table.h"
#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/ops/embedding/kernels.h"
#include "braid/ops/linear/kernels.h"
#include "braid/ops/rms_norm/kernels.h"
#include "braid/ops/short_conv/kernels.h"
#include "braid/ops/swiglu/kernels.h"

namespace braid {
namespace {

class Timing {
 public:
  Timing() : ctx_({.device = {.kind = DeviceKind::kCuda}}) {
    for (cudaEvent_t& event : events_) BRAID_CUDA_CHECK(cudaEventCreate(&event));
  }

  Context& ctx() { return ctx_; }
  void* queue() { return ctx_.api().stream(); }
  /// Values are drawn for a few rows and repeated: what matters is that they are not all alike.
  Tensor randn(Shape shape) {
    constexpr int64_t kDrawn = 1 << 16;
    const Rng rng(1);
    std::vector<float> values(static_cast<size_t>(shape.count()));
    for (int64_t i = 0; i < shape.count(); ++i) {
      values[static_cast<size_t>(i)] = i < kDrawn ? rng.normal(static_cast<uint64_t>(i))
                                                  : values[static_cast<size_t>(i - kDrawn)];
    }
    return ctx_.to_device(host_tensor(std::move(values), shape));
  }

  /// Median milliseconds of one launch.
  double median_ms(const std::function<void()>& launch) {
    const cudaStream_t stream = cuda::Queue::from(queue()).stream;
    for (int i = 0; i < 3; ++i) launch();
    std::vector<float> times;
    for (int i = 0; i < 20; ++i) {
      BRAID_CUDA_CHECK(cudaEventRecord(events_[0], stream));
      launch();
      BRAID_CUDA_CHECK(cudaEventRecord(events_[1], stream));
      BRAID_CUDA_CHECK(cudaEventSynchronize(events_[1]));
      float ms = 0;
      BRAID_CUDA_CHECK(cudaEventElapsedTime(&ms, events_[0], events_[1]));
      times.push_back(ms);
    }
    std::nth_element(times.begin(), times.begin() + 10, times.end());
    return static_cast<double>(times[10]);
  }

  void measure_copy() {
    constexpr size_t kBytes = size_t{1} << 30;
    const Tensor from = ctx_.zeros({int64_t{kBytes}}, DType::kU8);
    const Tensor to = ctx_.empty({int64_t{kBytes}}, DType::kU8);
    copy_ = 2 * kBytes / median_ms([&] { ctx_.api().copy(to.raw(), from.raw(), kBytes); }) / 1e6;
    fmt::print("{:<34} {:>9} {:>12} {:>7}\n", "kernel", "us", "", "of copy");
    fmt::print("{:<34} {:>9} {:>7.0f} GB/s\n", "copy 1 GiB", "", copy_);
  }

  /// `bytes`: what has to be read and written, once.
  void bandwidth(const char* name, double bytes, const std::function<void()>& launch) {
    const double ms = median_ms(launch);
    const double rate = bytes / ms / 1e6;
    fmt::print("{:<34} {:>9.1f} {:>7.0f} GB/s {:>6.0f}%\n", name, ms * 1e3, rate,
               100 * rate / copy_);
  }
  void arithmetic(const char* name, double flops, const std::function<void()>& launch) {
    const double ms = median_ms(launch);
    fmt::print("{:<34} {:>9.1f} {:>6.1f} TFLOP/s\n", name, ms * 1e3, flops / ms / 1e9);
  }

 private:
  Context ctx_;
  cudaEvent_t events_[2];
  double copy_ = 0;
};

double bytes_of(std::initializer_list<const Tensor*> tensors) {
  double bytes = 0;
  for (const Tensor* x : tensors) bytes += static_cast<double>(x->bytes());
  return bytes;
}

void time_rms_norm(Timing& timing, int64_t rows, int64_t width) {
  Context& ctx = timing.ctx();
  const RmsNormDims dims{
      .rows = rows, .width = width, .x_stride = width, .dy_stride = width, .eps = 1e-5f};
  const Tensor x = timing.randn({rows, width}), dy = timing.randn({rows, width});
  const Tensor w = timing.randn({width}), y = ctx.empty({rows, width}), dw = ctx.empty({width});
  const Tensor rstd = ctx.empty({rows}), partial = ctx.empty({dims.blocks(), width});
  timing.bandwidth(fmt::format("rms_norm ({}, {})", rows, width).c_str(), bytes_of({&x, &y}), [&] {
    cuda::rms_norm(timing.queue(), dims, x.f32(), w.f32(), y.f32(), rstd.f32());
  });
  timing.bandwidth(fmt::format("rms_norm vjp ({}, {})", rows, width).c_str(),
                   bytes_of({&x, &dy, &y}), [&] {
                     cuda::rms_norm_vjp(timing.queue(), dims, x.f32(), w.f32(), rstd.f32(),
                                        dy.f32(), y.f32(), dw.f32(), partial.f32());
                   });
}

void time_swiglu(Timing& timing, int64_t rows, int64_t width) {
  Context& ctx = timing.ctx();
  const SwigluDims dims{.rows = rows, .width = width, .x_stride = 2 * width, .dy_stride = width};
  const Tensor x = timing.randn({rows, 2 * width}), dy = timing.randn({rows, width});
  const Tensor y = ctx.empty({rows, width}), dx = ctx.empty({rows, 2 * width});
  timing.bandwidth(fmt::format("swiglu ({}, {})", rows, width).c_str(), bytes_of({&x, &y}),
                   [&] { cuda::swiglu(timing.queue(), dims, x.f32(), y.f32()); });
  timing.bandwidth(fmt::format("swiglu vjp ({}, {})", rows, width).c_str(),
                   bytes_of({&x, &dy, &dx}),
                   [&] { cuda::swiglu_vjp(timing.queue(), dims, x.f32(), dy.f32(), dx.f32()); });
}

void time_short_conv(Timing& timing, int64_t tokens, int64_t channels, int64_t length) {
  Context& ctx = timing.ctx();
  constexpr int64_t kWidth = 4;
  std::vector<int64_t> offsets{0};
  while (offsets.back() < tokens) offsets.push_back(std::min(tokens, offsets.back() + length));
  const auto sequences = static_cast<int64_t>(offsets.size()) - 1;
  const std::vector<const float*> none(offsets.size() - 1);
  const std::vector<float*> nowhere(offsets.size() - 1);
  const Table<int64_t> starts(ctx, offsets);
  const Table<const float*> from(ctx, none);
  const Table<float*> to(ctx, nowhere);
  ShortConvVjpDims dims{.base = {.tokens = tokens,
                                 .sequences = sequences,
                                 .channels = channels,
                                 .width = kWidth,
                                 .x_stride = channels,
                                 .y_stride = channels,
                                 .offsets = starts.data(),
                                 .silu = true},
                        .dy_stride = channels};
  const Tensor partial = ctx.empty({dims.tiles(), kWidth + 1, channels});
  dims.partial = partial.f32();
  const Tensor x = timing.randn({tokens, channels}), dy = timing.randn({tokens, channels});
  const Tensor w = timing.randn({channels, kWidth}), bias = timing.randn({channels});
  const Tensor y = ctx.empty(x.shape()), dw = ctx.empty(w.shape()), dbias = ctx.empty({channels});
  timing.bandwidth(fmt::format("short_conv ({}, {})", tokens, channels).c_str(), bytes_of({&x, &y}),
                   [&] {
                     cuda::short_conv(timing.queue(), dims.base, x.f32(), w.f32(), bias.f32(),
                                      from.data(), to.data(), y.f32());
                   });
  timing.bandwidth(fmt::format("short_conv vjp ({}, {})", tokens, channels).c_str(),
                   bytes_of({&x, &dy, &y}), [&] {
                     cuda::short_conv_vjp(timing.queue(), dims, x.f32(), w.f32(), bias.f32(),
                                          dy.f32(), from.data(), from.data(), to.data(), y.f32(),
                                          dw.f32(), dbias.f32());
                   });
}

void time_embedding(Timing& timing, int64_t tokens, int64_t vocabulary, int64_t width) {
  Context& ctx = timing.ctx();
  const EmbeddingDims dims{
      .m = tokens,
      .table = {.n = vocabulary, .k = width, .dtype = DType::kF32, .row = width, .column = 1},
      .y_row = width};
  std::vector<int32_t> host_ids;
  const Rng rng(2);
  for (int64_t i = 0; i < tokens; ++i) {
    const auto draw = static_cast<uint64_t>(i);
    host_ids.push_back(static_cast<int32_t>(rng.below(draw, static_cast<uint64_t>(vocabulary))));
  }
  const Table<int32_t> ids(ctx, host_ids);
  const Tensor table = timing.randn({vocabulary, width}), y = timing.randn({tokens, width});
  timing.bandwidth(
      fmt::format("embedding {} of ({}, {})", tokens, vocabulary, width).c_str(),
      2 * bytes_of({&y}),
      [&] { cuda::embedding(timing.queue(), dims, ids.data(), nullptr, table.raw(), y.f32()); });
  // Clears the table's gradient, then reads and writes the rows that have one.
  timing.bandwidth(fmt::format("embedding vjp {} of ({}, {})", tokens, vocabulary, width).c_str(),
                   bytes_of({&table}) + 3 * bytes_of({&y}), [&] {
                     cuda::embedding_vjp(timing.queue(), dims, ids.data(), y.f32(), table.f32());
                   });
}

void time_linear(Timing& timing, DType dtype, int64_t m, int64_t n, int64_t k) {
  Context& ctx = timing.ctx();
  const LinearDims dims{.m = m,
                        .b = {.n = n, .k = k, .dtype = dtype, .row = k, .column = 1},
                        .a_row = k,
                        .a_column = 1,
                        .c_row = n,
                        .start_row = 0};
  const Tensor x = timing.randn({m, k}), plain = timing.randn({n, k}), y = ctx.empty({m, n});
  const Tensor rounded = ctx.empty({n, k}, dtype);
  const PackDims pack{.to = dims.b, .from = DType::kF32, .row = k, .column = 1};
  cuda::pack(timing.queue(), pack, plain.raw(), rounded.raw());
  const auto bytes = static_cast<int64_t>(cuda::linear_scratch_bytes(dims));
  const Tensor scratch = ctx.empty({bytes}, DType::kU8);
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n * k);
  timing.arithmetic(
      fmt::format("linear {} ({}, {}) x {}", to_string(dtype), m, k, n).c_str(), flops, [&] {
        cuda::linear(timing.queue(), dims, x.f32(), rounded.raw(), nullptr, y.f32(), scratch.raw());
      });
}

}  // namespace
}  // namespace braid

int main() {
  using namespace braid;
  try {
    Timing timing;
    timing.measure_copy();
    time_rms_norm(timing, 32768, 768);
    time_rms_norm(timing, 16384, 4096);
    time_swiglu(timing, 8192, 5632);
    time_short_conv(timing, 65536, 1792, 2048);
    time_embedding(timing, 16384, 50288, 4096);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      time_linear(timing, dtype, 8192, 8192, 8192);
      time_linear(timing, dtype, 16384, 3352, 768);
      time_linear(timing, dtype, 16, 8192, 8192);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "cuda_timing: {}\n", error.what());
    return 1;
  }
  return 0;
}
