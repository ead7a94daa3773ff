#include "braid/train/experts/layers.h"

#include <algorithm>
#include <cmath>

#include "braid/core/error.h"
#include "braid/nn/ffns/moe.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/route/route.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

constexpr std::string_view kName = "moe";
// A logit and a bias that no choice and no weight notices, and finite, as routing wants them.
constexpr float kOutOfReach = -1e4f;

ExpertLayer layer_of(const Stack& stack, size_t i, size_t b) {
  const Stack::Residual& residual = stack.sublayers()[i];
  const SublayerSpec& spec = stack.config().sublayers[i].branches[b];
  SpecOptions options(spec);
  check(!options.has("reroute"),
        "experts: sublayer {} is {} with reroute, want routers that read one token alone", i,
        spec.name);
  ExpertLayer layer{.sublayer = i, .branch = b};
  layer.in_scale = options.number("in_scale", 1, -1e6, 1e6);
  const MoeFfn sizes({.width = stack.config().width}, options);
  layer.routing = sizes.routing();
  layer.routing.capacity = 0;
  layer.activation = sizes.expert_activation();
  for (Parameter* p : residual.branches[b]->parameters()) {
    const std::string& name = p->name;
    constexpr std::string_view kRouter = "router.weight";
    if (name.ends_with(kRouter)) {
      layer.router = p;
      layer.prefix = name.substr(0, name.size() - kRouter.size());
    } else if (name.ends_with("router.bias")) {
      layer.bias = p;
    } else if (name.starts_with(layer.prefix + "experts.")) {
      (name.ends_with("down.weight") ? layer.out : layer.in).push_back(p);
    }
  }
  return layer;
}

// What the chosen experts add up to in each row of the sample, from y (S, D) of every expert.
std::vector<double> combined(const RouterSample& sample, const std::vector<const Tensor*>& y) {
  const int64_t S = sample.rows(), k = sample.to.experts.dim(1), D = y[0]->dim(1);
  std::vector<double> sum(static_cast<size_t>(S * D));
  for (int64_t slot = 0; slot < S * k; ++slot) {
    const int64_t e = sample.to.experts.data<int32_t>()[slot], s = slot / k;
    if (e < 0) continue;
    const double weight = sample.to.weights.f32()[slot];
    const float* row = y[static_cast<size_t>(e)]->f32() + s * D;
    for (int64_t d = 0; d < D; ++d) {
      sum[static_cast<size_t>(s * D + d)] += weight * static_cast<double>(row[d]);
    }
  }
  return sum;
}

double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

// Tries the lifts; see MergedExpert.
std::vector<float> best_row(Context& ctx, const ExpertLayer& layer, const ExpertPair& pair,
                            const LayerOutputs& outputs, const MergedExpert& merged,
                            const RouterValues& router, const RouterSample& sample,
                            std::span<const float> base) {
  const Tensor x = ctx.to_device(sample.x);
  std::vector<const Tensor*> y;
  for (const ExpertOutputs& expert : outputs.experts) y.push_back(&expert.y);
  const std::vector<double> before = combined(sample, y);
  const ExpertOutputs of_merged = evaluate_expert(
      ctx, x,
      {.in = Weight::make(ctx, merged.matrices.in), .out = Weight::make(ctx, merged.matrices.out)},
      layer.activation);
  y[static_cast<size_t>(pair.i)] = &of_merged.y;

  const auto copy = [](const Tensor& t) {
    return host_tensor(std::vector<float>(t.f32(), t.f32() + t.count()), t.shape());
  };
  RouterValues folded{.weight = copy(router.weight), .bias = {}};
  if (router.bias.defined()) {
    folded.bias = copy(router.bias);
    folded.bias.f32()[pair.i] = merged.bias;
  }
  std::vector<float> best;
  double least = INFINITY;
  for (const double lift : {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0}) {
    std::vector<float> row = fold_rows(sample, layer.routing.score, pair.i, pair.j, base, lift);
    std::copy(row.begin(), row.end(), folded.weight.f32() + pair.i * layer.width());
    const RouterSample after = sample_router(ctx, x, folded, layer.routing, pair.j);
    const double moved = squared_distance(combined(after, y), before);
    if (!(moved < least)) continue;
    least = moved;
    best = std::move(row);
  }
  return best;
}

}  // namespace

std::vector<ExpertLayer> expert_layers(const Stack& stack) {
  std::vector<ExpertLayer> layers;
  for (size_t i = 0; i < stack.sublayers().size(); ++i) {
    const std::vector<std::string>& names = stack.sublayers()[i].names;
    for (size_t b = 0; b < names.size(); ++b) {
      if (names[b] != kName) continue;
      layers.push_back(layer_of(stack, i, b));
      layers.back().ordinal = std::ssize(layers) - 1;
    }
  }
  return layers;
}

Tensor host_values(Context& ctx, const Parameter& parameter) {
  if (parameter.value.defined()) return ctx.to_host(parameter.value);
  return parameter.weight.to_plain(ctx, DType::kF32);
}

ExpertMatrices host_expert(Context& ctx, const ExpertLayer& layer, int64_t e) {
  const auto at = static_cast<size_t>(e);
  return {host_values(ctx, *layer.in[at]), host_values(ctx, *layer.out[at])};
}

LayerSampler::LayerSampler(Context& ctx, const std::vector<ExpertLayer>& layers, int64_t tokens,
                           int64_t rows, const Rng& rng)
    : ctx_(ctx) {
  check(rows > 0, "experts: a sample of {} rows, want at least 1", rows);
  const int64_t count = std::min(rows, tokens);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = s * tokens / count, end = (s + 1) * tokens / count;
    positions_.push_back(begin +
                         static_cast<int64_t>(rng.below(static_cast<uint64_t>(s),
                                                        static_cast<uint64_t>(end - begin))));
  }
  for (const ExpertLayer& layer : layers) {
    layers_.push_back({.sublayer = layer.sublayer, .in_scale = static_cast<float>(layer.in_scale)});
  }
}

SublayerWatch LayerSampler::watch() {
  return [this](size_t index, const Tensor& x) {
    for (Layer& layer : layers_) {
      if (layer.sublayer != index) continue;
      std::vector<int64_t> here;
      const int64_t end = layer.passed + x.rows();
      for (; layer.next < positions_.size() && positions_[layer.next] < end; ++layer.next) {
        here.push_back(positions_[layer.next] - layer.passed);
      }
      layer.passed = end;
      if (here.empty()) continue;
      const Tensor taken = gather_rows(ctx_, x, here);
      layer.parts.push_back(
          ctx_.to_host(layer.in_scale == 1 ? taken : scale(ctx_, taken, layer.in_scale)));
    }
  };
}

Tensor LayerSampler::rows(size_t layer) const {
  const Layer& from = layers_[layer];
  check(from.next == positions_.size(), "experts: {} tokens passed, want the {} rows of the sample",
        from.passed, positions_.size());
  std::vector<float> values;
  for (const Tensor& part : from.parts) {
    values.insert(values.end(), part.f32(), part.f32() + part.count());
  }
  const int64_t D = from.parts.front().dim(1);
  return ctx_.to_device(host_tensor(std::move(values), {std::ssize(positions_), D}));
}

RouterValues host_router(Context& ctx, const ExpertLayer& layer) {
  return {.weight = host_values(ctx, *layer.router),
          .bias = layer.bias == nullptr ? Tensor() : host_values(ctx, *layer.bias)};
}

RouterSample sample_router(Context& ctx, const Tensor& x, const RouterValues& router,
                           const RouteOptions& routing, int64_t without) {
  const int64_t S = x.dim(0), E = router.weight.dim(0);
  RouterSample sample{.x = ctx.to_host(x), .logits = {}, .chosen = {}};
  sample.logits = product(ctx, sample.x, router.weight);
  Tensor bias = router.bias;
  if (without >= 0) {
    for (int64_t s = 0; s < S; ++s) sample.logits.f32()[s * E + without] = kOutOfReach;
    if (bias.defined()) {
      std::vector<float> values(bias.f32(), bias.f32() + E);
      values[static_cast<size_t>(without)] = kOutOfReach;
      bias = host_tensor(std::move(values), {E});
    }
  }
  const Routing to =
      route(ctx, ctx.to_device(sample.logits), bias.defined() ? ctx.to_device(bias) : Tensor(),
            SequenceBatch::single(S), routing);
  sample.to = {.experts = ctx.to_host(to.experts),
               .weights = ctx.to_host(to.weights),
               .load = ctx.to_host(to.load)};
  const Tensor& ids = sample.to.experts;
  sample.chosen.assign(static_cast<size_t>(S * E), 0);
  for (int64_t n = 0; n < ids.count(); ++n) {
    const int64_t e = ids.data<int32_t>()[n];
    if (e >= 0) sample.chosen[static_cast<size_t>(n / routing.top_k * E + e)] = 1;
  }
  return sample;
}

LayerOutputs measure_experts(Context& ctx, const ExpertLayer& layer, const Tensor& x) {
  LayerOutputs outputs;
  std::vector<Tensor> ys;
  for (size_t e = 0; e < layer.in.size(); ++e) {
    const Expert expert{.in = layer.in[e]->weight, .out = layer.out[e]->weight};
    outputs.experts.push_back(evaluate_expert(ctx, x, expert, layer.activation));
    ys.push_back(outputs.experts.back().y);
  }
  outputs.errors = relative_errors(ctx.threads(), ys);
  return outputs;
}

std::vector<ExpertPair> mergeable_pairs(const LayerOutputs& outputs,
                                        const std::vector<int64_t>& loads, int64_t tokens,
                                        double threshold) {
  const auto E = std::ssize(outputs.experts);
  std::vector<ExpertPair> pairs;
  for (int64_t i = 0; i < E; ++i) {
    for (int64_t j = i + 1; j < E; ++j) {
      const double error = outputs.errors[static_cast<size_t>(i * E + j)];
      if (!(error <= threshold)) continue;
      const auto a = static_cast<double>(loads[static_cast<size_t>(i)]);
      const auto b = static_cast<double>(loads[static_cast<size_t>(j)]);
      const double weight = a + b > 0 ? a * b / (a + b) / static_cast<double>(tokens) : 0;
      pairs.push_back({.i = i, .j = j, .error = error, .cost = error * error * weight});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const ExpertPair& a, const ExpertPair& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.error < b.error;
  });
  return pairs;
}

MergedExpert merge_pair(Context& ctx, const ExpertLayer& layer, const ExpertPair& pair,
                        const LayerOutputs& outputs, const RouterValues& router,
                        const RouterSample& sample, const std::vector<int64_t>& loads) {
  const auto i = static_cast<size_t>(pair.i), j = static_cast<size_t>(pair.j);
  const auto a = static_cast<double>(loads[i]), b = static_cast<double>(loads[j]);
  MergedExpert merged{.share = a + b > 0 ? b / (a + b) : 0.5};
  const ExpertMatrices first = host_expert(ctx, layer, pair.i);
  const ExpertMatrices second = host_expert(ctx, layer, pair.j);
  merged.alignment =
      align_units(ctx, first, second, outputs.experts[i].hidden, outputs.experts[j].hidden);
  merged.matrices = average(first, second, merged.alignment, merged.share);

  const auto mean = [&](float x, float y) {
    return static_cast<float>((1 - merged.share) * static_cast<double>(x) +
                              merged.share * static_cast<double>(y));
  };
  const int64_t D = layer.width();
  std::vector<float> base;
  for (int64_t d = 0; d < D; ++d) {
    base.push_back(mean(router.weight.f32()[pair.i * D + d], router.weight.f32()[pair.j * D + d]));
  }
  if (router.bias.defined()) merged.bias = mean(router.bias.f32()[i], router.bias.f32()[j]);
  merged.row = best_row(ctx, layer, pair, outputs, merged, router, sample, base);
  return merged;
}

}  // namespace braid
