#include "bench/experts_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "bench/ceilings.h"
#include "bench/op_bench.h"
#include "bench/timing.h"
#include "braid/core/rng.h"
#include "braid/ops/experts/cases.h"
#include "braid/ops/experts/experts.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/route/route.h"
#include "braid/ops/swiglu/swiglu.h"

namespace braid::bench {
namespace {

constexpr auto kModel = cases::kExpertsModel;
constexpr auto kSwiglu = ExpertActivation::kSwiglu;

// Uniform values: quick to draw, as there are many.
Tensor uniform(Shape shape, uint64_t seed, float scale) {
  const Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = scale * (static_cast<float>(rng.below(i, 255)) / 128.0f - 1.0f);
  }
  return host_tensor(std::move(values), shape);
}

struct Layer {
  Weight router;  // (E, D)
  std::vector<Expert> experts;
};

// Experts share a pool of values, from which each takes its own piece.
Layer make_layer(Context& ctx, DType dtype, bool trainable, uint64_t seed) {
  const int64_t in = 2 * kModel.hidden * kModel.width, out = kModel.width * kModel.hidden;
  const Tensor pool = uniform({in + out + 64 * kModel.experts}, seed, 0.05f);
  const WeightOptions options{.packed_dtype = dtype, .trainable = trainable};
  Layer layer;
  layer.router = Weight::make(ctx, uniform({kModel.experts, kModel.width}, seed + 1, 0.05f),
                              {.packed_dtype = dtype});
  const auto piece = [&](int64_t begin, int64_t rows, int64_t cols) {
    return pool.slice_rows(begin, begin + rows * cols).reshape({rows, cols});
  };
  for (int64_t e = 0; e < kModel.experts; ++e) {
    layer.experts.push_back(
        {Weight::make(ctx, piece(64 * e, 2 * kModel.hidden, kModel.width), options),
         Weight::make(ctx, piece(64 * e + in, kModel.width, kModel.hidden), options)});
    if (!trainable) continue;
    layer.experts.back().in.set_grad_id(static_cast<uint64_t>(2 * e + 1));
    layer.experts.back().out.set_grad_id(static_cast<uint64_t>(2 * e + 2));
  }
  return layer;
}

Routing choose(Context& ctx, const Layer& layer, const Tensor& x) {
  SequenceBatch batch;
  batch.add(x.rows());
  return route(ctx, linear(ctx, x, layer.router), {}, batch,
               {.top_k = kModel.slots, .normalise = true});
}

// A few rows against products of one expert at a time.
void check_layer(Context& ctx, const Layer& layer, const Tensor& x) {
  const Routing routing = choose(ctx, layer, x);
  const Tensor y = experts(ctx, x, routing.experts, routing.weights, layer.experts, kSwiglu);
  for (int64_t n = 0; n < std::min<int64_t>(x.rows(), 5); ++n) {
    std::vector<double> want(static_cast<size_t>(kModel.width));
    for (int64_t j = 0; j < kModel.slots; ++j) {
      const auto e = static_cast<size_t>(routing.experts.data<int32_t>()[n * kModel.slots + j]);
      const Tensor h = swiglu(ctx, linear(ctx, x.slice_rows(n, n + 1), layer.experts[e].in));
      const Tensor row = linear(ctx, h, layer.experts[e].out);
      for (size_t i = 0; i < want.size(); ++i) {
        want[i] += static_cast<double>(routing.weights.f32()[n * kModel.slots + j]) *
                   static_cast<double>(row.f32()[i]);
      }
    }
    double scale = 0, error = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      scale = std::max(scale, std::abs(want[i]));
      error =
          std::max(error, std::abs(want[i] - y.f32()[n * kModel.width + static_cast<int64_t>(i)]));
    }
    check(error <= 64 * 0x1p-24 * scale, ErrorKind::kUnsupported,
          "bench: experts are {:.2e} off their products, want {:.2e}", error, 64 * 0x1p-24 * scale);
  }
}

// Steps of `tokens` tokens through several layers in turn, so that no cache holds the experts that
// the next step hits; each round is followed by a reading of memory.
void bench_decode(Context& ctx, const std::vector<Layer>& layers, int64_t tokens) {
  constexpr int kRounds = 41;
  const int64_t steps = std::max<int64_t>(4, 32 / tokens);
  const Tensor x = random({steps * kRounds * tokens, kModel.width}, 5);
  check_layer(ctx, layers[0], x.slice_rows(0, tokens));
  const double expert_bytes = static_cast<double>(layers[0].experts[0].in.packed_bytes() +
                                                  layers[0].experts[0].out.packed_bytes());
  CeilingProbe read(ctx, CeilingProbe::kRead);
  std::vector<double> seconds, floors, shares;
  double hit = 0;
  using Clock = std::chrono::steady_clock;
  size_t layer = 0;
  for (int64_t round = 0; round < kRounds; ++round) {
    double experts_hit = 0;
    const auto begin = Clock::now();
    for (int64_t step = 0; step < steps; ++step, layer = (layer + 1) % layers.size()) {
      const int64_t at = (round * steps + step) * tokens;
      const Tensor row = x.slice_rows(at, at + tokens);
      const Routing routing = choose(ctx, layers[layer], row);
      experts(ctx, row, routing.experts, routing.weights, layers[layer].experts, kSwiglu);
      for (int64_t e = 0; e < kModel.experts; ++e) {
        experts_hit += routing.load.data<int32_t>()[e] > 0 ? 1 : 0;
      }
    }
    const std::chrono::duration<double> ours = Clock::now() - begin;
    const auto middle = Clock::now();
    read.run();
    const std::chrono::duration<double> theirs = Clock::now() - middle;
    if (round == 0) continue;
    const double bytes =
        experts_hit * expert_bytes +
        static_cast<double>(steps) * static_cast<double>(layers[0].router.packed_bytes());
    seconds.push_back(ours.count() / static_cast<double>(steps));
    floors.push_back(bytes / static_cast<double>(steps) * theirs.count() / read.work());
    shares.push_back(floors.back() / seconds.back());
    hit += experts_hit / static_cast<double>(steps * (kRounds - 1));
  }
  fmt::print(
      "  {:<5} decode {:>4} tokens  {:>8.1f} us   {:>5.1f} experts hit, floor of their bytes and "
      "the router's {:>7.1f} us = {:>5.1f}%\n",
      to_string(layers[0].router.dtype()), tokens, median(seconds) * 1e6, hit, median(floors) * 1e6,
      100 * median(shares));
}

// A dense feed-forward of as many operations: width k F, products alone.
struct Dense {
  Weight in, out;  // (2 k F, D), (D, k F)
  Tensor x, h;     // (N, D), (N, k F)
};
Dense make_dense(Context& ctx, DType dtype, bool trainable, const Tensor& x) {
  const int64_t hidden = kModel.slots * kModel.hidden;
  const WeightOptions options{.packed_dtype = dtype, .trainable = trainable};
  Dense dense{.in = Weight::make(ctx, uniform({2 * hidden, kModel.width}, 8, 0.05f), options),
              .out = Weight::make(ctx, uniform({kModel.width, hidden}, 9, 0.05f), options),
              .x = x,
              .h = random({x.rows(), hidden}, 10)};
  if (trainable) dense.in.set_grad_id(1001), dense.out.set_grad_id(1002);
  return dense;
}

// Seconds of the layer and of the dense products: with gradients, forward and backward.
void bench_many(Context& ctx, DType dtype, bool trainable) {
  Tensor x = random({kModel.tokens, kModel.width}, 6);
  const Layer layer = make_layer(ctx, dtype, trainable, 11);
  check_layer(ctx, layer, x);
  const Routing routing = choose(ctx, layer, x);
  Dense dense = make_dense(ctx, dtype, trainable, x);
  const Tensor dy = random(x.shape(), 7), dpre = random({kModel.tokens, dense.in.rows()}, 12);
  std::vector<std::function<void()>> bodies;
  if (trainable) {
    bodies = {[&] {
                Tape tape;
                Tensor leaf = x, weights = routing.weights;
                tape.watch(leaf);
                tape.watch(weights);
                Context taped = ctx.with_tape(&tape);
                const Tensor y =
                    experts(taped, leaf, routing.experts, weights, layer.experts, kSwiglu);
                tape.backward(ctx, {y}, {dy});
              },
              [&] {
                Tape tape;
                Tensor leaf = x, h = dense.h;
                tape.watch(leaf);
                tape.watch(h);
                Context taped = ctx.with_tape(&tape);
                const Tensor pre = linear(taped, leaf, dense.in);
                const Tensor y = linear(taped, h, dense.out);
                tape.backward(ctx, {pre, y}, {dpre, dy});
              }};
  } else {
    bodies = {[&] { experts(ctx, x, routing.experts, routing.weights, layer.experts, kSwiglu); },
              [&] {
                linear(ctx, dense.x, dense.in);
                linear(ctx, dense.h, dense.out);
              }};
  }
  const std::vector<double> seconds = interleaved_medians(bodies, 15);
  const double flops = (trainable ? 3 : 1) * 6.0 *
                       static_cast<double>(kModel.tokens * kModel.slots) *
                       static_cast<double>(kModel.width * kModel.hidden);
  fmt::print(
      "  {:<5} {:<6} {:>4} tokens  {:>8.1f} ms   {:>6.1f} GFLOP/s = {:>5.1f}% of dense products of "
      "as many operations ({:.1f})\n",
      to_string(dtype), trainable ? "train" : "many", kModel.tokens, seconds[0] * 1e3,
      flops / seconds[0] * 1e-9, 100 * seconds[1] / seconds[0], flops / seconds[1] * 1e-9);
}

}  // namespace

void bench_experts(Context& ctx) {
  fmt::print("experts: {} experts of width {}, {} a token, model width {}, {} threads\n",
             kModel.experts, kModel.hidden, kModel.slots, kModel.width, ctx.threads().size());
  {
    std::vector<Layer> layers;
    for (uint64_t i = 0; i < 4; ++i) layers.push_back(make_layer(ctx, DType::kBF16, false, 2 * i));
    for (const int64_t tokens : cases::kExpertsDecode) bench_decode(ctx, layers, tokens);
  }
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    bench_many(ctx, dtype, false);
    bench_many(ctx, dtype, true);
  }
}

}  // namespace braid::bench
