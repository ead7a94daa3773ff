#include "braid/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "braid/core/error.h"
#include "braid/core/tape.h"
#include "braid/train/dataset.h"

namespace braid {
namespace {

// Of the run's random numbers: those of noise in the forward pass.
constexpr uint64_t kNoiseStream = 0x6e6f697365;
// And those of experts that are split.
constexpr uint64_t kRecycleStream = 0x72656379636c65;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json line_of(const StepReport& r) {
  nlohmann::json line = {{"step", r.step},
                         {"loss", r.loss},
                         {"accuracy", r.accuracy},
                         {"lr", r.learning_rate},
                         {"grad_norm", r.gradient_norm},
                         {"tokens_per_s", r.tokens_per_s},
                         {"gemm_share", r.gemm_share},
                         {"seconds", r.seconds}};
  if (!r.load_peaks.empty()) {
    line["load_peaks"] = r.load_peaks;
    line["dropped"] = r.dropped;
  }
  if (r.rerouted) line["rerouted"] = *r.rerouted;
  return line;
}

void report_loads(const ExpertLoads& loads, StepReport& report) {
  int64_t choices = 0, rerouted = 0, reroutable = 0;
  for (const ExpertLoads::Layer& layer : loads.layers) {
    const int64_t sum = std::accumulate(layer.tokens.begin(), layer.tokens.end(), int64_t{0});
    const double mean = static_cast<double>(sum) / static_cast<double>(layer.tokens.size());
    const auto most = static_cast<double>(std::ranges::max(layer.tokens));
    report.load_peaks.push_back(sum == 0 ? 1.0 : most / mean);
    report.dropped += layer.dropped;
    choices += sum;
    rerouted += layer.rerouted;
    reroutable += layer.reroutable;
  }
  report.dropped_share =
      static_cast<double>(report.dropped) / static_cast<double>(std::max<int64_t>(choices, 1));
  if (reroutable > 0) {
    report.rerouted = static_cast<double>(rerouted) / static_cast<double>(reroutable);
  }
}

nlohmann::json line_of(int64_t step, const EvaluationSet& set, const Evaluation& e) {
  nlohmann::json line = {{"step", step},
                         {"set", set.name()},
                         {"valid_loss", e.loss},
                         {"valid_accuracy", e.accuracy},
                         {"valid_tokens", e.targets}};
  if (e.bytes > 0) {
    line["valid_perplexity"] = e.perplexity();
    line["valid_bits_per_byte"] = e.bits_per_byte;
  }
  return line;
}

}  // namespace

Trainer::Trainer(Context& ctx, Stack& stack, BatchSource& source,
                 std::vector<const EvaluationSet*> evaluations, RunDirectory& directory,
                 const TrainerOptions& options)
    : ctx_(ctx),
      stack_(stack),
      source_(source),
      evaluations_(std::move(evaluations)),
      directory_(directory),
      options_(options),
      optimizer_(ctx, stack, options.optimizer) {
  stack.check_causal("train");
  check(options.schedule.steps > 0, "train: {} steps, want at least 1", options.schedule.steps);
  check(options.accumulate > 0, "train: accumulate {}, want at least 1", options.accumulate);
  check(options.save_every > 0, "train: save every {} steps, want at least 1", options.save_every);
  check(options.eval_every > 0, "train: evaluate every {} steps, want at least 1",
        options.eval_every);
  check(!options.stop_accuracy || !evaluations_.empty(),
        "train: an accuracy to stop at, want something to evaluate on as well");
}

// What must not change between a checkpoint and its resumption. Numbers that only steer the rest of
// the run (rates, steps, how often to save) may.
nlohmann::json Trainer::identity() const {
  std::string parameters;
  for (const auto& [name, parameter] : stack_.parameters()) {
    parameters += name + to_string(parameter->shape) + ";";
  }
  nlohmann::json run = source_.identity();
  run["parameters"] = fmt::format("{:016x}", hash_bytes(parameters));
  run["accumulate"] = options_.accumulate;
  return run;
}

bool Trainer::resume() {
  CheckpointStore& store = directory_.checkpoints();
  store.clean();
  const auto latest = store.latest();
  if (!latest) return false;
  const nlohmann::json saved = store.trainer(*latest), now = identity();
  try {
    for (const auto& [key, value] : now.items()) {
      const nlohmann::json was = saved.at("run").value(key, nlohmann::json());
      check(was == value, "train: cannot resume {}: {} was {}, now it is {}",
            directory_.folder().string(), key, was.dump(), value.dump());
    }
    step_ = saved.at("step").get<int64_t>();
    metrics_bytes_ = saved.at("metrics_bytes").get<uint64_t>();
    seconds_ = saved.at("seconds").get<double>();
    accuracy_ = saved.value("accuracy", 0.0);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kFormat, "train: checkpoint {} of {} is damaged: {}", *latest,
         directory_.folder().string(), error.what());
  }
  optimizer_.load(ctx_, store.tensors(*latest));
  // The model beside it may be older, if the kill came between the two.
  directory_.export_model(ctx_, stack_);
  return true;
}

Trainer::Score Trainer::micro_batch(int64_t index) {
  const TrainingBatch batch = source_.batch(index);
  Tape tape(optimizer_.sinks());
  Context taped = ctx_.with_tape(&tape);
  const CrossEntropyResult scores =
      predict(taped, stack_, batch,
              {.noise = ctx_.rng().fork(kNoiseStream).fork(static_cast<uint64_t>(index)),
               .loads = &loads_});
  Score score{.loss = ctx_.to_host(scores.loss).f32()[0], .counted = scores.counted};
  const Tensor hits = ctx_.to_host(scores.correct);
  for (int64_t i = 0; i < hits.count(); ++i) score.correct += hits.data<int32_t>()[i];
  Tensor one = host_tensor<float>({1.0f}, scores.loss.shape());
  tape.backward(ctx_, {scores.loss}, {ctx_.to_device(one)});
  return score;
}

// Of a step. The backward pass does every product twice: once for the input, once for the weight.
// The head sees only the rows that are predicted.
double Trainer::matmul_flops(int64_t tokens, int64_t targets) const {
  const auto head = 2.0 * static_cast<double>(stack_.config().vocab * stack_.config().width);
  return 3 * (static_cast<double>(tokens) * (stack_.matmul_flops() - head) +
              static_cast<double>(targets) * head);
}

StepReport Trainer::train_step() {
  const auto start = std::chrono::steady_clock::now();
  optimizer_.zero_gradients(ctx_);
  loads_ = {};
  Score sum;
  for (int64_t i = 0; i < options_.accumulate; ++i) {
    const Score score = micro_batch(step_ * options_.accumulate + i);
    sum = {sum.loss + score.loss, sum.correct + score.correct, sum.counted + score.counted};
  }
  StepReport report{.step = step_ + 1,
                    .loss = sum.loss / static_cast<double>(options_.accumulate),
                    .accuracy = static_cast<double>(sum.correct) /
                                static_cast<double>(std::max<int64_t>(sum.counted, 1))};
  report.learning_rate = options_.schedule.learning_rate(step_);
  report.gradient_norm = optimizer_.step(ctx_, step_, report.learning_rate,
                                         1.0 / static_cast<double>(options_.accumulate));
  check(std::isfinite(report.loss) && std::isfinite(report.gradient_norm),
        "train: step {}: loss {} and gradient norm {}, want finite numbers (a lower learning rate "
        "or more warm-up may help)",
        report.step, report.loss, report.gradient_norm);
  report_loads(loads_, report);
  stack_.after_step(ctx_, loads_);
  ++step_;
  const double seconds = seconds_since(start);
  seconds_ += seconds;
  const int64_t tokens = source_.tokens_per_batch() * options_.accumulate;
  report.tokens_per_s = static_cast<double>(tokens) / seconds;
  if (options_.gemm_peak_flops > 0) {
    report.gemm_share = matmul_flops(tokens, sum.counted) / seconds / options_.gemm_peak_flops;
  }
  report.seconds = seconds_;
  return report;
}

// From the step's own first batch, so that a resumed run does the same.
void Trainer::recycle_now(MetricsLog& metrics, const TrainerObserver& observer) {
  const TrainingBatch batch = source_.batch((step_ - 1) * options_.accumulate);
  const Rng rng = ctx_.rng().fork(kRecycleStream).fork(static_cast<uint64_t>(step_));
  for (const RecycledExpert& done :
       recycle_experts(ctx_, stack_, optimizer_, batch, options_.recycle, rng)) {
    metrics.write({{"step", step_},
                   {"sublayer", done.sublayer},
                   {"merged", {done.pair.i, done.pair.j}},
                   {"error", done.pair.error},
                   {"split", done.split}});
    if (observer.on_recycled) observer.on_recycled(step_, done);
  }
}

void Trainer::evaluate_now(MetricsLog& metrics, const TrainerObserver& observer) {
  for (const EvaluationSet* set : evaluations_) {
    const Evaluation e = evaluate(ctx_, stack_, *set, {.batch_tokens = source_.tokens_per_batch()});
    if (set == evaluations_.front()) accuracy_ = e.accuracy;
    metrics.write(line_of(step_, *set, e));
    if (observer.on_evaluation) observer.on_evaluation(step_, *set, e);
  }
}

bool Trainer::stopped_early() const {
  return options_.stop_accuracy && accuracy_ >= *options_.stop_accuracy;
}

void Trainer::save() {
  directory_.checkpoints().save(step_, optimizer_.tensors(ctx_),
                                {{"step", step_},
                                 {"metrics_bytes", metrics_bytes_},
                                 {"seconds", seconds_},
                                 {"accuracy", accuracy_},
                                 {"run", identity()}});
  directory_.export_model(ctx_, stack_);
}

void Trainer::run(int64_t until, const TrainerObserver& observer) {
  const int64_t last = options_.schedule.steps;
  directory_.create();
  MetricsLog metrics(directory_.metrics(), metrics_bytes_);
  while (step_ < std::min(until, last) && !stopped_early()) {
    const StepReport report = train_step();
    metrics.write(line_of(report));
    if (observer.on_step) observer.on_step(report);
    const int64_t every = options_.recycle.every;
    if (every > 0 && step_ % every == 0 && step_ != last) recycle_now(metrics, observer);
    if (step_ % options_.eval_every == 0 || step_ == last) evaluate_now(metrics, observer);
    if (step_ % options_.save_every == 0 || step_ == last || stopped_early()) {
      metrics_bytes_ = metrics.sync();
      save();
    }
  }
}

}  // namespace braid
