#include "braid/train/trainer.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/core/tape.h"
#include "braid/ops/cross_entropy/cross_entropy.h"

namespace braid {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json line_of(const StepReport& r) {
  return {{"step", r.step},
          {"loss", r.loss},
          {"lr", r.learning_rate},
          {"grad_norm", r.gradient_norm},
          {"tokens_per_s", r.tokens_per_s},
          {"gemm_share", r.gemm_share},
          {"seconds", r.seconds}};
}

}  // namespace

Trainer::Trainer(Context& ctx, Stack& stack, const Dataset& train, const Dataset* valid,
                 RunDirectory& directory, const TrainerOptions& options)
    : ctx_(ctx),
      stack_(stack),
      train_(train),
      valid_(valid),
      directory_(directory),
      options_(options),
      loader_(train, options.loader),
      optimizer_(ctx, stack, options.optimizer) {
  check(options.schedule.steps > 0, "train: {} steps, want at least 1", options.schedule.steps);
  check(options.accumulate > 0, "train: accumulate {}, want at least 1", options.accumulate);
  check(options.save_every > 0, "train: save every {} steps, want at least 1", options.save_every);
  check(options.eval_every > 0, "train: evaluate every {} steps, want at least 1",
        options.eval_every);
}

// What must not change between a checkpoint and its resumption. Numbers that only steer the rest of
// the run (rates, steps, how often to save) may.
nlohmann::json Trainer::identity() const {
  std::string parameters;
  for (const auto& [name, parameter] : stack_.parameters()) {
    parameters += name + to_string(parameter->shape) + ";";
  }
  return {{"parameters", fmt::format("{:016x}", hash_bytes(parameters))},
          {"data", fmt::format("{:016x}", train_.fingerprint())},
          {"length", options_.loader.length},
          {"batch", options_.loader.batch},
          {"accumulate", options_.accumulate},
          {"seed", options_.loader.seed}};
}

bool Trainer::resume() {
  CheckpointStore& store = directory_.checkpoints();
  store.clean();
  const auto latest = store.latest();
  if (!latest) return false;
  const nlohmann::json saved = store.trainer(*latest), now = identity();
  try {
    for (const auto& [key, value] : now.items()) {
      const nlohmann::json& was = saved.at("run").at(key);
      check(was == value, "train: cannot resume {}: {} was {}, now it is {}",
            directory_.folder().string(), key, was.dump(), value.dump());
    }
    step_ = saved.at("step").get<int64_t>();
    metrics_bytes_ = saved.at("metrics_bytes").get<uint64_t>();
    seconds_ = saved.at("seconds").get<double>();
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kFormat, "train: checkpoint {} of {} is damaged: {}", *latest,
         directory_.folder().string(), error.what());
  }
  optimizer_.load(ctx_, store.tensors(*latest));
  // The model beside it may be older, if the kill came between the two.
  directory_.export_model(ctx_, stack_);
  return true;
}

double Trainer::micro_batch(int64_t index) {
  const TrainingBatch batch = loader_.batch(index);
  Tape tape(optimizer_.sinks());
  Context taped = ctx_.with_tape(&tape);
  Tensor logits = stack_.forward(taped, batch.tokens, batch.batch);
  const Tensor loss = softmax_cross_entropy(taped, logits, batch.targets).loss;
  const double value = ctx_.to_host(loss).f32()[0];
  Tensor one = host_tensor<float>({1.0f}, loss.shape());
  tape.backward(ctx_, {loss}, {ctx_.to_device(one)});
  return value;
}

StepReport Trainer::train_step() {
  const auto start = std::chrono::steady_clock::now();
  optimizer_.zero_gradients(ctx_);
  double loss = 0;
  for (int64_t i = 0; i < options_.accumulate; ++i) {
    loss += micro_batch(step_ * options_.accumulate + i);
  }
  StepReport report{.step = step_ + 1, .loss = loss / static_cast<double>(options_.accumulate)};
  report.learning_rate = options_.schedule.learning_rate(step_);
  report.gradient_norm = optimizer_.step(ctx_, step_, report.learning_rate,
                                         1.0 / static_cast<double>(options_.accumulate));
  check(std::isfinite(report.loss) && std::isfinite(report.gradient_norm),
        "train: step {}: loss {} and gradient norm {}, want finite numbers (a lower learning rate "
        "or more warm-up may help)",
        report.step, report.loss, report.gradient_norm);
  ++step_;
  const double seconds = seconds_since(start);
  seconds_ += seconds;
  const auto tokens = static_cast<double>(loader_.tokens_per_step() * options_.accumulate);
  report.tokens_per_s = tokens / seconds;
  if (options_.gemm_peak_flops > 0) {
    // The backward pass does every product twice: once for the input, once for the weight.
    report.gemm_share = 3 * stack_.matmul_flops() * report.tokens_per_s / options_.gemm_peak_flops;
  }
  report.seconds = seconds_;
  return report;
}

void Trainer::evaluate_now(MetricsLog& metrics, const TrainerObserver& observer) {
  const Evaluation e = evaluate(ctx_, stack_, *valid_,
                                {.length = options_.loader.length,
                                 .batch_tokens = loader_.tokens_per_step(),
                                 .max_tokens = options_.eval_tokens});
  metrics.write({{"step", step_},
                 {"valid_loss", e.loss},
                 {"valid_perplexity", e.perplexity},
                 {"valid_bits_per_byte", e.bits_per_byte},
                 {"valid_tokens", e.tokens}});
  if (observer.on_evaluation) observer.on_evaluation(step_, e);
}

void Trainer::save() {
  directory_.checkpoints().save(step_, optimizer_.tensors(ctx_),
                                {{"step", step_},
                                 {"metrics_bytes", metrics_bytes_},
                                 {"seconds", seconds_},
                                 {"run", identity()}});
  directory_.export_model(ctx_, stack_);
}

void Trainer::run(int64_t until, const TrainerObserver& observer) {
  const int64_t last = options_.schedule.steps;
  MetricsLog metrics(directory_.metrics(), metrics_bytes_);
  while (step_ < std::min(until, last)) {
    const StepReport report = train_step();
    metrics.write(line_of(report));
    if (observer.on_step) observer.on_step(report);
    if (valid_ != nullptr && (step_ % options_.eval_every == 0 || step_ == last)) {
      evaluate_now(metrics, observer);
    }
    if (step_ % options_.save_every == 0 || step_ == last) {
      metrics_bytes_ = metrics.sync();
      save();
    }
  }
}

}  // namespace braid
