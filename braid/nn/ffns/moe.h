#pragma once

#include <optional>
#include <vector>

#include "braid/nn/ffns/reroute.h"
#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/experts/experts.h"
#include "braid/ops/route/options.h"

namespace braid {

/// A mixture of experts: each token is read by the k of E feed-forwards that its router prefers.
///
///   y = sum_j w_j f(x; experts[e_j]) + g f(x; shared),   (e, w) = route(x W_router^T)
///
/// `moe:E/k`. Options:
///   hidden         F, an expert's width (SwigluFfn's divided by k, rounded up to 16)
///   act            swiglu | relu2 | relu | gelu | silu (swiglu): the first is gated
///   router         softmax | sigmoid | selected (softmax), see RouteScore
///   norm           weights divided by their sum (1 for softmax and sigmoid where k > 1, else 0)
///   scale          of the weights (1)
///   groups, keep   the `keep` best of so many groups of neighbours are chosen from (1, all)
///   group_score    top2 | max (top2)
///   select_bias    0 | 1: a bias of the choice alone, which balances the loads (0)
///   shared         S, a dense expert of width S F beside the chosen ones (0)
///   shared_hidden  its width instead; shared_gate  0 | 1: times g = sigmoid(x w) (0)
///   reroute        TAU: choices that a margin below it decides are made again with a summary of
///                  the tokens before (absent: never); context, window: see Reroute
/// and, in training alone:
///   aux, seq_aux, z  coefficients of the balance, sequence and z losses (0)
///   balance        how far the bias moves a step (0.001)
///   capacity       tokens an expert takes, as a multiple of an even share (0: all)
///   jitter         the router reads x times a uniform factor within 1 +- jitter (0)
///   dropout        of the elements that the chosen experts add (0)
///
/// Parameters: router.weight (E, D), always float32; router.bias (E), frozen, with select_bias;
/// experts.I.gate_up.weight (2F, D), the gate's rows first, or experts.I.up.weight (F, D);
/// experts.I.down.weight (D, F); shared.gate_up or shared.up, shared.down; shared_gate (1, D).
/// Outside training a token's result depends on nothing else in the batch, and without `reroute` on
/// no other token. What is optional and how
/// it is derived: braid/ops/route/README.md; sources in route.h. The shared expert: Dai et al.,
/// arXiv:2401.06066; its gate: Qwen2 (arXiv:2407.10671).
class MoeFfn final : public Sublayer {
 public:
  MoeFfn(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;
  /// bias_e += balance * sign(mean - tokens_e).
  void after_step(Context& ctx, const ExpertLoads& loads) override;

  const RouteOptions& routing() const { return routing_; }
  ExpertActivation expert_activation() const { return act_; }

 private:
  // One feed-forward of any activation.
  struct Dense {
    Linear in, out;
    ExpertActivation act;
    Tensor forward(Context& ctx, const Tensor& x) const;
  };
  void read_routing(SpecOptions& options);
  void read_training(SpecOptions& options);
  Linear expert_in(const std::string& name, int64_t width) const;
  Linear expert_out(const std::string& name, int64_t width) const;
  ExpertList own_experts() const;
  Tensor routed(Context& ctx, const Tensor& x, Stream& stream, const LayerState* state) const;
  // The logits (N, E) that decide.
  Tensor decide(Context& ctx, const Tensor& x, const Tensor& logits, Stream& stream,
                const LayerState* state) const;

  SublayerConfig config_;
  int64_t experts_count_ = 0;  // E
  ExpertActivation act_ = ExpertActivation::kSwiglu;
  RouteOptions routing_;  // with what only training asks for
  float balance_ = 0, jitter_ = 0, dropout_ = 0;
  Linear router_;
  std::optional<Parameter> bias_;
  std::optional<Reroute> reroute_;
  std::vector<Linear> in_, out_;  // (E)
  std::optional<Dense> shared_;
  std::optional<Linear> shared_gate_;
};

}  // namespace braid
