#include "braid/train/experts/recycle.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace braid {
namespace {

// Streams of the step's random numbers.
constexpr uint64_t kRowStream = 0x726f77, kSplitStream = 0x73706c6974, kNoiseStream = 0x6e6f697365;

void write(Context& ctx, const Tensor& to, const Tensor& from) {
  ctx.api().copy_from_host(to.raw(), from.raw(), from.bytes());
}

// x (E, ...) on the host with row `to` of other values.
void set_row(const Tensor& x, int64_t to, std::span<const float> values) {
  std::copy(values.begin(), values.end(), x.f32() + to * x.row_count());
}

std::span<const float> row_of(const Tensor& x, int64_t row) {
  return {x.f32() + row * x.row_count(), static_cast<size_t>(x.row_count())};
}

// x + factor * noise * (root mean square of x) * normal numbers.
Tensor with_noise(const Tensor& x, double noise, const Rng& rng) {
  const double size = noise * norm_of(x) / std::sqrt(static_cast<double>(x.count()));
  std::vector<float> values(x.f32(), x.f32() + x.count());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] += static_cast<float>(size * static_cast<double>(rng.normal(i)));
  }
  return host_tensor(std::move(values), x.shape());
}

class LayerRecycler {
 public:
  LayerRecycler(Context& ctx, Optimizer& optimizer, const ExpertLayer& layer,
                const RecycleOptions& options, const Rng& rng)
      : ctx_(ctx), optimizer_(optimizer), layer_(layer), options_(options), rng_(rng) {}

  std::optional<RecycledExpert> run(const Tensor& x, const std::vector<int64_t>& loads,
                                    int64_t tokens);

 private:
  void merge(const MergedExpert& merged);
  void split(const RouterValues& router, const SplitRows& rows);
  void write_router(const RouterValues& router, double share);

  Context& ctx_;
  Optimizer& optimizer_;
  const ExpertLayer& layer_;
  const RecycleOptions& options_;
  const Rng& rng_;
  RecycledExpert done_;
};

std::optional<RecycledExpert> LayerRecycler::run(const Tensor& x, const std::vector<int64_t>& loads,
                                                 int64_t tokens) {
  if (layer_.experts() < 3) return std::nullopt;
  const LayerOutputs outputs = measure_experts(ctx_, layer_, x);
  const auto pairs = mergeable_pairs(outputs, loads, tokens, options_.threshold);
  if (pairs.empty()) return std::nullopt;
  done_ = {.sublayer = layer_.sublayer, .pair = pairs[0], .split = -1};
  for (int64_t e = 0; e < layer_.experts(); ++e) {
    if (e == done_.pair.i || e == done_.pair.j) continue;
    const auto load = [&](int64_t expert) { return loads[static_cast<size_t>(expert)]; };
    if (done_.split < 0 || load(e) > load(done_.split)) done_.split = e;
  }
  RouterValues router = host_router(ctx_, layer_);
  const RouterSample before = sample_router(ctx_, x, router, layer_.routing);
  const MergedExpert merged = merge_pair(ctx_, layer_, done_.pair, outputs, router, before, loads);
  set_row(router.weight, done_.pair.i, merged.row);
  if (router.bias.defined()) set_row(router.bias, done_.pair.i, {&merged.bias, 1});
  // The choice as it is once j is no expert of its own.
  const RouterSample after = sample_router(ctx_, x, router, layer_.routing, done_.pair.j);
  if (after.load(done_.split) == 0) return std::nullopt;
  const SplitRows rows =
      split_rows(after, done_.split, row_of(router.weight, done_.split), rng_.fork(kSplitStream));
  done_.margin = rows.margin;
  merge(merged);
  split(router, rows);
  write_router(router, merged.share);
  return done_;
}

void LayerRecycler::merge(const MergedExpert& merged) {
  const auto i = static_cast<size_t>(done_.pair.i), j = static_cast<size_t>(done_.pair.j);
  const auto moments = [&](Tensor Optimizer::Moments::*which, bool squares) {
    const auto of = [&](size_t e) {
      return ExpertMatrices{ctx_.to_host(optimizer_.moments(*layer_.in[e]).*which),
                            ctx_.to_host(optimizer_.moments(*layer_.out[e]).*which)};
    };
    const ExpertMatrices mean = average(of(i), of(j), merged.alignment, merged.share, squares);
    write(ctx_, optimizer_.moments(*layer_.in[i]).*which, mean.in);
    write(ctx_, optimizer_.moments(*layer_.out[i]).*which, mean.out);
  };
  moments(&Optimizer::Moments::m, false);
  moments(&Optimizer::Moments::v, true);
  write(ctx_, layer_.in[i]->value, merged.matrices.in);
  write(ctx_, layer_.out[i]->value, merged.matrices.out);
  layer_.in[i]->weight.repack(ctx_);
  layer_.out[i]->weight.repack(ctx_);
}

void LayerRecycler::split(const RouterValues& router, const SplitRows& rows) {
  const auto h = static_cast<size_t>(done_.split), j = static_cast<size_t>(done_.pair.j);
  uint64_t matrix = 0;
  for (const std::vector<Parameter*>* matrices : {&layer_.in, &layer_.out}) {
    Parameter& whole = *(*matrices)[h];
    Parameter& half = *(*matrices)[j];
    const Rng noise = rng_.fork(kNoiseStream).fork(matrix++);
    const Tensor value = ctx_.to_host(whole.value);
    write(ctx_, whole.value, with_noise(value, options_.noise, noise));
    write(ctx_, half.value, with_noise(value, -options_.noise, noise));
    whole.weight.repack(ctx_);
    half.weight.repack(ctx_);
    const Optimizer::Moments from = optimizer_.moments(whole), to = optimizer_.moments(half);
    write(ctx_, to.m, ctx_.to_host(from.m));
    write(ctx_, to.v, ctx_.to_host(from.v));
  }
  set_row(router.weight, done_.split, rows.first);
  set_row(router.weight, done_.pair.j, rows.second);
  if (router.bias.defined()) set_row(router.bias, done_.pair.j, row_of(router.bias, done_.split));
}

void LayerRecycler::write_router(const RouterValues& router, double share) {
  write(ctx_, layer_.router->value, router.weight);
  layer_.router->weight.repack(ctx_);
  if (router.bias.defined()) write(ctx_, layer_.bias->value, router.bias);
  const Optimizer::Moments moments = optimizer_.moments(*layer_.router);
  for (const Tensor& moment : {moments.m, moments.v}) {
    const Tensor host = ctx_.to_host(moment);
    const std::span<const float> first = row_of(host, done_.pair.i);
    const std::span<const float> second = row_of(host, done_.pair.j);
    std::vector<float> mean;
    for (size_t d = 0; d < first.size(); ++d) {
      mean.push_back(static_cast<float>((1 - share) * static_cast<double>(first[d]) +
                                        share * static_cast<double>(second[d])));
    }
    set_row(host, done_.pair.i, mean);
    set_row(host, done_.pair.j, row_of(host, done_.split));
    write(ctx_, moment, host);
  }
}

}  // namespace

std::vector<RecycledExpert> recycle_experts(Context& ctx, Stack& stack, Optimizer& optimizer,
                                            const TrainingBatch& batch,
                                            const RecycleOptions& options, const Rng& rng) {
  const std::vector<ExpertLayer> layers = expert_layers(stack);
  if (layers.empty()) return {};
  const int64_t tokens = batch.batch.tokens();
  LayerSampler sampler(ctx, layers, tokens, options.rows, rng.fork(kRowStream));
  ExpertLoads loads;
  predict(ctx, stack, batch, {.loads = &loads, .watch = sampler.watch()});
  std::vector<RecycledExpert> done;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Rng of_layer = rng.fork(i);
    LayerRecycler recycler(ctx, optimizer, layers[i], options, of_layer);
    const auto& of_experts = loads.layers[static_cast<size_t>(layers[i].ordinal)].tokens;
    if (auto recycled = recycler.run(sampler.rows(i), of_experts, tokens)) {
      done.push_back(*recycled);
    }
  }
  return done;
}

}  // namespace braid
