#include "braid/nn/ffns/moe.h"

#include <algorithm>
#include <numeric>

#include "braid/nn/expert_host.h"
#include "braid/nn/ffns/activate.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/route/route.h"

namespace braid {
namespace {

// Of one mixture, and of all that a stack has: a spec must not fill the memory by itself.
constexpr int64_t kMostExperts = 65536, kMostInAll = 2 * kMostExperts;
constexpr float kRouterStddev =
    0.02f;  // logits begin close together, so that all experts are tried
// Of a pass's random numbers.
constexpr uint64_t kJitterStream = 0x6a6974746572, kDropoutStream = 0x64726f70;

// x times a factor of its own for each element: of(u), u uniform in [0, 1).
template <class Of>
Tensor times_noise(Context& ctx, const Tensor& x, const Rng& rng, Of&& of) {
  std::vector<float> factors(static_cast<size_t>(x.count()));
  constexpr int64_t kBlock = 4;  // numbers a draw of the generator gives
  const int64_t count = x.count();
  ctx.threads().parallel_for((count + kBlock - 1) / kBlock, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto bits = rng.block(static_cast<uint64_t>(i));
      for (int64_t j = i * kBlock; j < std::min(count, (i + 1) * kBlock); ++j) {
        const auto top = static_cast<float>(bits[static_cast<size_t>(j % kBlock)] >> 8);
        factors[static_cast<size_t>(j)] = of(top * 0x1p-24f);
      }
    }
  });
  return multiply(ctx, x, ctx.to_device(host_tensor(std::move(factors), x.shape())));
}

int64_t count_dropped(Context& ctx, const Tensor& experts) {
  const Tensor ids = ctx.to_host(experts);
  return std::count(ids.data<int32_t>(), ids.data<int32_t>() + ids.count(), -1);
}

}  // namespace

MoeFfn::MoeFfn(const SublayerConfig& config, SpecOptions& options) : config_(config) {
  const int64_t D = config.width;
  const auto [E, k] = options.positional_choice(
      "experts", std::min(kMostExperts, std::max<int64_t>(1, kMostInAll / config.of_kind)));
  experts_count_ = E;
  routing_.top_k = k;
  const int64_t dense = (8 * D / 3 + 63) / 64 * 64;
  const int64_t F = options.integer("hidden", ((dense + k - 1) / k + 15) / 16 * 16);
  act_ = activation_of(options.text("act", "swiglu", {"swiglu", "relu2", "relu", "gelu", "silu"}));
  read_routing(options);

  router_ = Linear("router", D, E, false, init_normal(kRouterStddev));
  router_.weight().full_precision = true;
  if (options.flag("select_bias", false)) {
    bias_ =
        Parameter{.name = "router.bias", .shape = {E}, .frozen = true, .init = init_constant(0)};
  }
  if (options.has("reroute")) reroute_.emplace(config, E, routing_, options);
  in_.reserve(static_cast<size_t>(E));
  out_.reserve(static_cast<size_t>(E));
  for (int64_t e = 0; e < E; ++e) {
    const std::string name = "experts." + std::to_string(e) + ".";
    in_.push_back(expert_in(name, F));
    out_.push_back(expert_out(name, F));
    in_.back().weight().active = out_.back().weight().active =
        static_cast<double>(k) / static_cast<double>(E);
  }
  const int64_t shared = options.integer("shared", 0, 0, 4096);
  const int64_t shared_hidden = options.integer("shared_hidden", shared * F);
  if (shared_hidden > 0) {
    shared_ =
        Dense{expert_in("shared.", shared_hidden), expert_out("shared.", shared_hidden), act_};
  }
  if (options.flag("shared_gate", false)) {
    if (!shared_) options.refuse("shared_gate", "0 without shared experts");
    shared_gate_ = Linear("shared_gate", D, 1, false, projection_init(D));
  }
  read_training(options);
}

void MoeFfn::read_routing(SpecOptions& options) {
  const std::string score = options.text("router", "softmax", {"softmax", "sigmoid", "selected"});
  routing_.score = score == "softmax"   ? RouteScore::kSoftmax
                   : score == "sigmoid" ? RouteScore::kSigmoid
                                        : RouteScore::kSelected;
  const bool sums_to_one = routing_.score == RouteScore::kSelected;
  routing_.normalise = options.flag("norm", !sums_to_one && routing_.top_k > 1);
  routing_.scale = static_cast<float>(options.number("scale", 1, -1e6, 1e6));
  routing_.groups = options.integer("groups", 1, 1, experts_count_);
  if (experts_count_ % routing_.groups != 0) {
    options.refuse("groups", fmt::format("a number that divides {}", experts_count_));
  }
  routing_.kept_groups = options.integer("keep", routing_.groups, 1, routing_.groups);
  if (routing_.kept_groups * (experts_count_ / routing_.groups) < routing_.top_k) {
    options.refuse("keep", fmt::format("groups with at least {} experts", routing_.top_k));
  }
  routing_.group_score = options.text("group_score", "top2", {"top2", "max"}) == "max"
                             ? GroupScore::kMax
                             : GroupScore::kTop2;
}

void MoeFfn::read_training(SpecOptions& options) {
  routing_.balance_loss = static_cast<float>(options.number("aux", 0, 0, 1e6));
  routing_.sequence_loss = static_cast<float>(options.number("seq_aux", 0, 0, 1e6));
  routing_.z_loss = static_cast<float>(options.number("z", 0, 0, 1e6));
  if (options.has("balance") && !bias_) options.refuse("balance", "select_bias=1 beside it");
  balance_ = static_cast<float>(options.number("balance", 0.001, 0, 1));
  routing_.capacity = static_cast<float>(options.number("capacity", 0, 0, 1e6));
  jitter_ = static_cast<float>(options.number("jitter", 0, 0, 1));
  dropout_ = static_cast<float>(options.number("dropout", 0, 0, 0.99));
}

Linear MoeFfn::expert_in(const std::string& name, int64_t width) const {
  const bool gated = act_ == ExpertActivation::kSwiglu;
  return Linear(name + (gated ? "gate_up" : "up"), config_.width, gated ? 2 * width : width, false,
                projection_init(config_.width));
}

Linear MoeFfn::expert_out(const std::string& name, int64_t width) const {
  return Linear(name + "down", width, config_.width, false, residual_init(width, config_.count));
}

Tensor MoeFfn::Dense::forward(Context& ctx, const Tensor& x) const {
  return out.forward(ctx, activate(ctx, in.forward(ctx, x), act));
}

// Asked for one by one: a step of decode hits few of many, and a handle costs its reference count.
ExpertList MoeFfn::own_experts() const {
  return {std::ssize(in_), [this](int64_t e) -> Expert {
            const auto at = static_cast<size_t>(e);
            return {.in = in_[at].weight().weight, .out = out_[at].weight().weight};
          }};
}

Tensor MoeFfn::decide(Context& ctx, const Tensor& x, const Tensor& logits, Stream& stream,
                      const LayerState* state) const {
  if (!reroute_) return logits;
  const Reroute::Decided decided =
      reroute_->decide(ctx, x, logits, bias_ ? bias_->value : Tensor(), stream.batch(), state);
  if (ExpertLoads* loads = stream.options().loads) {
    const Tensor uncertain = ctx.to_host(decided.uncertain);
    const float* u = uncertain.f32();
    loads->add_rerouted(config_.ordinal, std::count(u, u + x.rows(), 1.0f), x.rows());
  }
  return decided.logits;
}

Tensor MoeFfn::routed(Context& ctx, const Tensor& x, Stream& stream,
                      const LayerState* state) const {
  const std::optional<Rng>& noise = stream.options().noise;
  const auto layer = static_cast<uint64_t>(config_.ordinal);
  RouteOptions routing = routing_;
  if (!noise) routing.capacity = 0;
  Tensor seen = x;
  if (noise && jitter_ > 0) {
    seen = times_noise(ctx, x, noise->fork(kJitterStream).fork(layer),
                       [this](float u) { return 1 + jitter_ * (2 * u - 1); });
  }
  const Tensor logits = decide(ctx, x, router_.forward(ctx, seen), stream, state);
  const Routing to = route(ctx, logits, bias_ ? bias_->value : Tensor(), stream.batch(), routing);
  if (ExpertLoads* loads = stream.options().loads) {
    const Tensor load = ctx.to_host(to.load);
    loads->add(config_.ordinal, {load.data<int32_t>(), static_cast<size_t>(load.count())},
               routing.capacity > 0 ? count_dropped(ctx, to.experts) : 0);
  }
  ExpertHost* host = stream.options().expert_host;
  const Tensor y = host != nullptr
                       ? host->evaluate(ctx, config_.ordinal, x, to.experts, to.weights, act_)
                       : experts(ctx, x, to.experts, to.weights, own_experts(), act_);
  if (!noise || dropout_ == 0) return y;
  return times_noise(ctx, y, noise->fork(kDropoutStream).fork(layer),
                     [this](float u) { return u < dropout_ ? 0 : 1 / (1 - dropout_); });
}

Tensor MoeFfn::forward(Context& ctx, const Tensor& x, Stream& stream,
                       const LayerState* state) const {
  const Tensor y = routed(ctx, x, stream, state);
  if (!shared_) return y;
  Tensor beside = shared_->forward(ctx, x);
  if (shared_gate_) {
    const Tensor gate = activation(ctx, shared_gate_->forward(ctx, x), Activation::kSigmoid);
    beside = scale_rows(ctx, beside, gate);
  }
  return add(ctx, y, beside);
}

StateSpec MoeFfn::state_spec() const { return reroute_ ? reroute_->state_spec() : StateSpec{}; }

std::vector<Parameter*> MoeFfn::parameters() {
  std::vector<Parameter*> out;
  router_.collect(out);
  if (bias_) out.push_back(&*bias_);
  if (reroute_) reroute_->collect(out);
  for (size_t e = 0; e < in_.size(); ++e) {
    in_[e].collect(out);
    out_[e].collect(out);
  }
  if (shared_) {
    shared_->in.collect(out);
    shared_->out.collect(out);
  }
  if (shared_gate_) shared_gate_->collect(out);
  return out;
}

double MoeFfn::matmul_flops() const {
  const double expert = in_[0].matmul_flops() + out_[0].matmul_flops();
  double flops = router_.matmul_flops() + static_cast<double>(routing_.top_k) * expert;
  if (shared_) flops += shared_->in.matmul_flops() + shared_->out.matmul_flops();
  if (reroute_) flops += reroute_->matmul_flops();
  if (shared_gate_) flops += shared_gate_->matmul_flops();
  return flops;
}

void MoeFfn::after_step(Context& ctx, const ExpertLoads& loads) {
  const auto layer = static_cast<size_t>(config_.ordinal);
  if (!bias_ || balance_ == 0 || layer >= loads.layers.size()) return;
  const std::vector<int64_t>& tokens = loads.layers[layer].tokens;
  if (tokens.empty()) return;
  const int64_t all = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  const Tensor moved = ctx.to_host(bias_->value);
  for (size_t e = 0; e < tokens.size(); ++e) {
    const int64_t above_mean = tokens[e] * experts_count_ - all;  // E times
    moved.f32()[e] -= balance_ * static_cast<float>((above_mean > 0) - (above_mean < 0));
  }
  ctx.api().copy_from_host(bias_->value.raw(), moved.raw(), moved.bytes());
}

}  // namespace braid
