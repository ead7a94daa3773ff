#include "bench/linear_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <vector>

#include "bench/ceilings.h"
#include "bench/onednn.h"
#include "bench/timing.h"
#include "braid/core/rng.h"
#include "braid/ops/linear/cases.h"
#include "braid/ops/linear/linear.h"

namespace braid::bench {
namespace {

// Values that bfloat16 holds exactly, so that one check serves both dtypes.
Tensor random(Shape shape, uint64_t seed) {
  const Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(rng.below(i, 255)) / 128.0f - 1.0f;
  }
  return host_tensor(std::move(values), shape);
}

void check_product(const Tensor& x, const Tensor& w, const Tensor& y, const char* who) {
  const int64_t k = x.dim(1);
  for (int64_t sample = 0; sample < 64; ++sample) {
    const int64_t i = sample * 7919 % x.rows(), j = sample * 104729 % w.rows();
    double want = 0;
    for (int64_t p = 0; p < k; ++p) {
      want += static_cast<double>(x.f32()[i * k + p]) * w.f32()[j * k + p];
    }
    const double got = y.f32()[i * w.rows() + j];
    const double bound = 16 * 0x1p-24 * std::sqrt(static_cast<double>(k)) * static_cast<double>(k);
    check(std::abs(got - want) <= bound, ErrorKind::kUnsupported,
          "bench: {} gives {} at ({}, {}), want {}", who, got, i, j, want);
  }
}

struct Measured {
  double ours, onednn,
      ceiling;  // seconds; onednn 0 where absent; the ceiling's is per unit of work
};

Measured measure(Context& ctx, const cases::LinearCase& shape, DType dtype, CeilingProbe& probe,
                 int rounds) {
  const auto [m, n, k] = shape;
  const Tensor x = random({m, k}, 1), plain = random({n, k}, 2), other = ctx.empty({m, n});
  const Weight w = Weight::make(ctx, plain, {.packed_dtype = dtype});
  check_product(x, plain, linear(ctx, x, w), "linear");
  std::vector<std::function<void()>> bodies = {[&] { probe.run(); }, [&] { linear(ctx, x, w); }};
  std::optional<OneDnnLinear> onednn;
  if (OneDnnLinear::available()) {
    onednn.emplace(ctx.threads().size(), m, n, k, dtype, x.f32(), plain.f32(), other.f32());
    onednn->run();
    check_product(x, plain, other, "oneDNN");
    bodies.push_back([&] { onednn->run(); });
  }
  const std::vector<double> seconds = interleaved_medians(bodies, rounds);
  return {.ours = seconds[1],
          .onednn = seconds.size() > 2 ? seconds[2] : 0,
          .ceiling = seconds[0] / probe.work()};
}

void print_row(const cases::LinearCase& shape, DType dtype, const Measured& t, double work,
               const char* unit) {
  fmt::print("{:<5} {:>5} x {:>5} x {:>5}  {:>9.1f} us  {:>7.1f} {}  {:>5.1f}% of {:>6.1f}",
             to_string(dtype), shape.m, shape.n, shape.k, t.ours * 1e6, work / t.ours * 1e-9, unit,
             100 * t.ceiling * work / t.ours, 1e-9 / t.ceiling);
  if (t.onednn > 0) {
    fmt::print("   oneDNN {:>7.1f}  ratio {:.2f}", work / t.onednn * 1e-9, t.onednn / t.ours);
  }
  fmt::print("\n");
}

}  // namespace

void bench_linear(Context& ctx, int rounds) {
  fmt::print("linear: y (M, N) = x (M, K) W^T, {} threads, medians of {} interleaved rounds\n",
             ctx.threads().size(), rounds);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CeilingProbe peak(ctx, dtype == DType::kF32 ? CeilingProbe::kF32 : CeilingProbe::kBF16);
    for (const auto& shape : cases::kLinearModel) {
      const Measured t = measure(ctx, shape, dtype, peak, rounds);
      print_row(shape, dtype, t, 2.0 * static_cast<double>(shape.m * shape.n * shape.k), "GFLOP/s");
    }
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CeilingProbe read(ctx, CeilingProbe::kRead);
    for (const auto& shape : cases::kLinearDecode) {
      const Measured t = measure(ctx, shape, dtype, read, rounds);
      const double bytes =
          static_cast<double>(shape.n * shape.k) * static_cast<double>(size_of(dtype));
      print_row(shape, dtype, t, bytes, "GB/s   ");
    }
  }
}

}  // namespace braid::bench
