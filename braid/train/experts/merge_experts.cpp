#include "braid/train/experts/merge_experts.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "braid/core/error.h"

namespace braid {
namespace {

constexpr uint64_t kSampleStream = 0x6d65726765;

// One layer of the stack as it is, with what the search knows of it.
struct Candidate {
  Tensor x;  // (S, D), the rows that entered the layer of the model as it came
  LayerOutputs outputs;
  bool done = false;
};

class Search {
 public:
  Search(Context& ctx, EditedModel& model, const EvaluationSet& set,
         const MergeExpertsOptions& options, const MergeObserver& observer)
      : ctx_(ctx), model_(model), set_(set), options_(options), observer_(observer) {
    for (int64_t s = 0; s < set.sequences(); ++s) tokens_ += set.length(s);
  }
  MergeResult run();

 private:
  struct Choice {
    size_t layer = 0;
    ExpertPair pair;
  };
  Evaluation measure(const Stack& stack, ExpertLoads& loads, const SublayerWatch& watch = {});
  void survey(const Evaluation& evaluation);
  std::optional<Choice> best() const;
  void attempt(const Choice& choice, MergeResult& result, double limit);
  const std::vector<int64_t>& loads_of(size_t layer) const {
    return loads_.layers[static_cast<size_t>(layers_[layer].ordinal)].tokens;
  }

  Context& ctx_;
  EditedModel& model_;
  const EvaluationSet& set_;
  const MergeExpertsOptions& options_;
  const MergeObserver& observer_;
  int64_t tokens_ = 0;
  std::unique_ptr<Stack> stack_;
  std::vector<ExpertLayer> layers_;  // of stack_
  ExpertLoads loads_;                // of stack_
  std::vector<Candidate> candidates_;
};

Evaluation Search::measure(const Stack& stack, ExpertLoads& loads, const SublayerWatch& watch) {
  return evaluate(ctx_, stack, set_, {.loads = &loads, .watch = watch});
}

void Search::survey(const Evaluation& evaluation) {
  std::vector<LayerSurvey> surveys;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const ExpertLayer& layer = layers_[i];
    const LayerOutputs& outputs = candidates_[i].outputs;
    LayerSurvey survey{.sublayer = layer.sublayer,
                       .experts = layer.experts(),
                       .top_k = layer.routing.top_k,
                       .least_error = 2,
                       .loads = loads_of(i)};
    for (int64_t a = 0; a < layer.experts(); ++a) {
      for (int64_t b = a + 1; b < layer.experts(); ++b) {
        const double error = outputs.errors[static_cast<size_t>(a * layer.experts() + b)];
        survey.least_error = std::min(survey.least_error, error);
        survey.pairs += error <= options_.threshold;
      }
    }
    surveys.push_back(std::move(survey));
  }
  if (observer_.on_survey) observer_.on_survey(evaluation, surveys);
}

std::optional<Search::Choice> Search::best() const {
  std::optional<Choice> best;
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (candidates_[i].done || layers_[i].experts() <= layers_[i].routing.top_k) continue;
    const auto pairs =
        mergeable_pairs(candidates_[i].outputs, loads_of(i), tokens_, options_.threshold);
    if (!pairs.empty() && (!best || pairs[0].cost < best->pair.cost)) best = {i, pairs[0]};
  }
  return best;
}

void Search::attempt(const Choice& choice, MergeResult& result, double limit) {
  const ExpertLayer& layer = layers_[choice.layer];
  Candidate& candidate = candidates_[choice.layer];
  const std::vector<int64_t>& loads = loads_of(choice.layer);
  const RouterValues router = host_router(ctx_, layer);
  const RouterSample sample = sample_router(ctx_, candidate.x, router, layer.routing);
  MergeAttempt report{.sublayer = layer.sublayer,
                      .pair = choice.pair,
                      .load_i = loads[static_cast<size_t>(choice.pair.i)],
                      .load_j = loads[static_cast<size_t>(choice.pair.j)],
                      .experts = layer.experts(),
                      .loss_before = result.loss_after};
  EditedModel trial = model_;
  trial.merge(layer, choice.pair,
              merge_pair(ctx_, layer, choice.pair, candidate.outputs, router, sample, loads),
              router);
  std::unique_ptr<Stack> stack = trial.build(ctx_);
  ExpertLoads of_trial;
  report.loss_after = measure(*stack, of_trial).loss;
  report.accepted = report.loss_after <= limit;
  if (report.accepted) {
    model_ = std::move(trial);
    stack_ = std::move(stack);
    layers_ = expert_layers(*stack_);
    loads_ = std::move(of_trial);
    result.loss_after = report.loss_after;
    ++result.merges;
    candidate.outputs = measure_experts(ctx_, layers_[choice.layer], candidate.x);
  } else {
    candidate.done = true;
  }
  if (observer_.on_attempt) observer_.on_attempt(report);
}

MergeResult Search::run() {
  stack_ = model_.build(ctx_);
  layers_ = expert_layers(*stack_);
  LayerSampler sampler(ctx_, layers_, tokens_, options_.rows,
                       Rng(options_.seed).fork(kSampleStream));
  const Evaluation evaluation = measure(*stack_, loads_, sampler.watch());
  for (size_t i = 0; i < layers_.size(); ++i) {
    Candidate& candidate = candidates_.emplace_back();
    candidate.x = sampler.rows(i);
    candidate.outputs = measure_experts(ctx_, layers_[i], candidate.x);
  }
  survey(evaluation);
  MergeResult result{.loss_before = evaluation.loss, .loss_after = evaluation.loss};
  const double limit = evaluation.loss * (1 + options_.max_loss_increase);
  while (options_.max_merges == 0 || result.merges < options_.max_merges) {
    const std::optional<Choice> choice = best();
    if (!choice) break;
    attempt(*choice, result, limit);
  }
  return result;
}

}  // namespace

void check_options(const MergeExpertsOptions& options) {
  check(std::isfinite(options.max_loss_increase) && options.max_loss_increase >= 0,
        "merge-experts: a loss increase of {}, want a share from 0", options.max_loss_increase);
  check(options.threshold >= 0 && options.threshold <= 2,
        "merge-experts: threshold {}, want an error from 0 to 2", options.threshold);
  check(options.max_merges >= 0, "merge-experts: at most {} merges, want a number from 0",
        options.max_merges);
  check(options.rows > 0, "merge-experts: a sample of {} tokens, want at least 1", options.rows);
}

void check_mergeable(const ModelConfig& config) {
  const std::vector<ExpertLayer> layers = expert_layers(Stack(config));
  check(!layers.empty(), "merge-experts: the model has no experts, want a sublayer moe");
  for (const ExpertLayer& layer : layers) {
    check(layer.routing.groups == 1,
          "merge-experts: sublayer {} chooses among {} groups of experts, want no groups: those of "
          "{} experts are of unequal size",
          layer.sublayer, layer.routing.groups, layer.experts() - 1);
  }
}

MergeResult merge_experts(Context& ctx, EditedModel& model, const EvaluationSet& set,
                          const MergeExpertsOptions& options, const MergeObserver& observer) {
  check_options(options);
  check_mergeable(model.config());
  return Search(ctx, model, set, options, observer).run();
}

}  // namespace braid
