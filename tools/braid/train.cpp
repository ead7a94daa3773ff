#include <fmt/core.h>

#include "braid/model/presets.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "braid/train/gemm_peak.h"
#include "braid/train/tasks/task.h"
#include "braid/train/trainer.h"
#include "tools/braid/commands.h"
#include "tools/braid/config_file.h"
#include "tools/braid/progress.h"
#include "tools/braid/train_data.h"

namespace braid {
namespace {

struct TrainFlags {
  std::string config, stack, preset, out, dtype = "bf16", compute = "f32";
  int64_t width = 0;
  std::string norm = "rms";
  bool embedding_norm = false;
  bool tied = true, resume = false, recompute = false;
  uint64_t seed = 0;
  int keep = 2;
  double lr = 1e-3, min_lr = 0;
  int64_t warmup = 100;
  TrainDataFlags data;
  TrainerOptions trainer;
  DeviceFlags device;
};

DType parse_dtype(const std::string& name) {
  return name == "bf16" ? DType::kBF16 : DType::kF32;  // the parser lets nothing else through
}

std::string short_count(double value) {
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

// What --stack and --width say is usage, wherever it is refused.
std::unique_ptr<Stack> build_stack(const TrainFlags& flags, const TrainData& data) {
  return from_flag([&] {
    ModelConfig config;
    config.width = flags.width;
    config.sublayers = parse_stack(flags.stack);
    config.norm = flags.norm == "layer" ? NormKind::kLayer : NormKind::kRms;
    config.embedding_norm = flags.embedding_norm;
    config.tied = flags.tied;
    config.dtype = parse_dtype(flags.dtype);
    data.configure(config);
    auto stack =
        std::make_unique<Stack>(config, StackOptions{.trainable = true,
                                                     .matrix_dtype = parse_dtype(flags.compute),
                                                     .recompute = flags.recompute});
    stack->check_causal("train");
    return stack;
  });
}

TrainerObserver observer_of(ProgressLine& line, int64_t steps) {
  return {.on_step =
              [&line, steps](const StepReport& r) {
                std::string detail =
                    fmt::format("step {}  loss {:.3f}  {:.1f}% right  {} tokens/s", r.step, r.loss,
                                100 * r.accuracy, short_count(r.tokens_per_s));
                if (r.gemm_share > 0) {
                  detail += fmt::format("  {:.0f}% of GEMM peak", 100 * r.gemm_share);
                }
                if (!r.load_peaks.empty()) {
                  detail += fmt::format("  load {:.2f}x", std::ranges::max(r.load_peaks));
                }
                if (r.dropped > 0) {
                  detail += fmt::format("  {:.1f}% dropped", 100 * r.dropped_share);
                }
                if (r.rerouted) detail += fmt::format("  {:.0f}% rerouted", 100 * *r.rerouted);
                line.update(r.step, steps, detail);
              },
          .on_evaluation =
              [&line](int64_t step, const EvaluationSet& set, const Evaluation& e) {
                line.note(fmt::format("step {}: {}", step, describe(set, e)));
              },
          .on_recycled =
              [&line](int64_t step, const RecycledExpert& done) {
                line.note(fmt::format(
                    "step {}: sublayer {}: expert {} merged into {} at {:.4f}, its slot has half "
                    "of {}",
                    step, done.sublayer, done.pair.j, done.pair.i, done.pair.error, done.split));
              }};
}

// The two kinds of data share no flags but those of the batch.
void check_flags(const CLI::App& command, const TrainFlags& flags) {
  if (flags.preset.empty()) require_options(command, {"--stack", "--width"});
  require_options(command, {"--batch", "--steps", "--out"});
  const bool task = !flags.data.task.empty();
  if (!task) require_options(command, {"--tokenizer", "--data", "--length"});
  const auto refuse = [&](std::initializer_list<const char*> options, const char* why) {
    for (const char* name : options) {
      if (command.get_option(name)->count() > 0) {
        throw UsageError(fmt::format("{}: {}", name, why));
      }
    }
  };
  if (!flags.preset.empty()) {
    refuse({"--stack", "--width", "--norm", "--embedding-norm"}, "is --preset's to say");
  }
  if (task) {
    refuse({"--tokenizer", "--data", "--valid", "--eval-tokens"},
           "is for text, want it left out with --task");
    refuse({"--length"}, "is the task's own, want it left out or as len= of --task");
  } else {
    refuse({"--eval-task", "--eval-examples"}, "is for tasks, want --task with it");
  }
  if (flags.trainer.stop_accuracy && !task && flags.data.valid.empty()) {
    throw UsageError("--stop-accuracy: nothing to evaluate on, want --valid with it");
  }
}

void apply_preset(TrainFlags& flags) {
  const Preset& preset = from_flag([&]() -> const Preset& { return find_preset(flags.preset); });
  if (preset.planning) {
    throw UsageError(fmt::format("--preset: {} is {}, want one that can be trained", preset.name,
                                 preset.summary));
  }
  flags.stack = preset.stack;
  flags.width = preset.width;
  flags.norm = preset.norm == NormKind::kLayer ? "layer" : "rms";
  flags.embedding_norm = preset.embedding_norm;
}

void train(TrainFlags& flags) {
  if (!flags.preset.empty()) apply_preset(flags);
  flags.data.loader.seed = flags.seed;
  flags.trainer.schedule.peak = flags.lr;
  flags.trainer.schedule.floor = flags.min_lr;
  flags.trainer.schedule.warmup = flags.warmup;

  Context ctx = flags.device.context(flags.seed);
  const std::unique_ptr<TrainData> data = make_train_data(flags.data);
  const std::unique_ptr<Stack> built = build_stack(flags, *data);
  Stack& stack = *built;

  RunDirectory directory(flags.out, {.dtype = parse_dtype(flags.dtype),
                                     .keep = flags.keep,
                                     .tokenizer_json = data->tokenizer_json()});
  if (!flags.resume && directory.checkpoints().latest()) {
    throw UsageError(fmt::format(
        "--out: {} already holds a run; go on with --resume or choose another directory",
        flags.out));
  }
  data->open(ctx, directory);
  stack.initialize(ctx, Rng(flags.seed));
  flags.trainer.gemm_peak_flops = measure_gemm_flops(ctx, parse_dtype(flags.compute));
  Trainer trainer(ctx, stack, data->source(), data->evaluations(), directory, flags.trainer);
  const bool resumed = flags.resume && trainer.resume();

  ProgressLine line("train");
  const int64_t steps = flags.trainer.schedule.steps;
  line.note(fmt::format("{} parameters, {} in {} steps{}; GEMM peak {:.0f} GFLOP/s",
                        short_count(static_cast<double>(stack.parameter_count())),
                        data->source().describe(steps * flags.trainer.accumulate), steps,
                        resumed ? fmt::format(", resumed at {}", trainer.steps_done()) : "",
                        flags.trainer.gemm_peak_flops / 1e9));
  trainer.run(observer_of(line, steps));
  if (trainer.stopped_early()) {
    line.note(fmt::format("stopped after {} steps, accuracy {:.4f} reached", trainer.steps_done(),
                          *flags.trainer.stop_accuracy));
  }
}

void add_model_options(CLI::App& command, TrainFlags& flags) {
  command.add_option("--config", flags.config,
                     "JSON object of long option names; the command line wins");
  command.add_option("--stack", flags.stack, "the sublayers, e.g. \"(swa:256 swiglu)x4\"");
  command.add_option("--preset", flags.preset, "a known stack with its width: " + preset_names());
  command.add_option("--width", flags.width, "of the residual stream")->check(CLI::PositiveNumber);
  command.add_option("--norm", flags.norm, "in front of every sublayer and of the head")
      ->check(CLI::IsMember({"rms", "layer"}))
      ->capture_default_str();
  command.add_flag("--embedding-norm", flags.embedding_norm,
                   "normalise the embedding too, as RWKV does");
  command.add_option("--tokenizer", flags.data.tokenizer,
                     "tokenizer.json, or bytes (any: they need not be UTF-8)");
  command.add_flag("--tied,!--untied", flags.tied, "the head is the embedding (default)");
  command.add_option("--dtype", flags.dtype, "of the weights that are saved")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command.add_option("--compute", flags.compute, "dtype of the matrix products in training")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command.add_flag("--recompute", flags.recompute,
                   "run each sublayer again in the backward pass: less memory, more time");
}

void add_data_options(CLI::App& command, TrainFlags& flags) {
  TrainerOptions& t = flags.trainer;
  TrainDataFlags& d = flags.data;
  command.add_option("--data", d.data,
                     "text (documents end with a line <|endoftext|>) or .tokens files");
  command.add_option("--valid", d.valid, "text to evaluate on");
  command.add_option("--task", d.task, "a synthetic task instead of text: " + task_names());
  command.add_option("--eval-task", d.eval_tasks,
                     "evaluate on this task too, say at another length; may be repeated");
  command.add_option("--length", d.loader.length, "longest sequence of text")
      ->check(CLI::PositiveNumber);
  command.add_option("--batch", d.loader.batch, "sequences' worth of tokens at a time")
      ->check(CLI::PositiveNumber);
  command.add_option("--accumulate", t.accumulate, "batches to a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--out", flags.out, "directory of the run and of the model it makes");
  command.add_flag("--resume", flags.resume, "go on from the newest checkpoint, if there is one");
  command.add_option("--save-every", t.save_every, "steps between checkpoints")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--keep", flags.keep, "checkpoints kept")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--eval-every", t.eval_every, "steps between evaluations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--eval-tokens", d.eval_tokens,
                  "evaluate on about this many tokens of text, evenly spread; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--eval-examples", d.eval_examples, "evaluate on this many of a task")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--stop-accuracy", t.stop_accuracy,
                  "end the run when this share of the targets is predicted in an evaluation")
      ->check(CLI::Range(0.0, 1.0));
}

void add_recycle_options(CLI::App& command, RecycleOptions& o) {
  command
      .add_option("--merge-every", o.every,
                  "steps between looks for experts that have become one function: they are merged, "
                  "and the busiest one is split; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--merge-threshold", o.threshold,
                  "largest relative error of two experts' outputs that are merged")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
}

void add_optimizer_options(CLI::App& command, TrainFlags& flags) {
  OptimizerOptions& o = flags.trainer.optimizer;
  command.add_option("--steps", flags.trainer.schedule.steps, "optimiser steps of the whole run")
      ->check(CLI::PositiveNumber);
  const auto number = [&](const char* name, double& value, const char* help) {
    command.add_option(name, value, help)->check(CLI::Range(0.0, 1e6))->capture_default_str();
  };
  const auto fraction = [&](const char* name, double& value, const char* help) {
    command.add_option(name, value, help)->check(CLI::Range(0.0, 0.999999))->capture_default_str();
  };
  number("--lr", flags.lr, "peak learning rate");
  number("--min-lr", flags.min_lr, "learning rate at the end of the cosine");
  command.add_option("--warmup", flags.warmup, "steps of linear warm-up")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  number("--weight-decay", o.weight_decay, "of matrices; nothing else decays");
  fraction("--beta1", o.beta1, "decay of the first moment");
  fraction("--beta2", o.beta2, "decay of the second moment");
  number("--clip", o.clip, "largest norm of the gradient; 0: no limit");
  command
      .add_option("--seed", flags.seed,
                  "of the weights and of the order of the text or the examples")
      ->capture_default_str();
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = app.add_subcommand("train", "Train a stack on text or on a synthetic task");
  add_model_options(*command, *flags);
  add_data_options(*command, *flags);
  add_optimizer_options(*command, *flags);
  add_recycle_options(*command, flags->trainer.recycle);
  flags->device.add(*command);
  command->callback([flags, command] {
    if (!flags->config.empty()) apply_config_file(*command, flags->config);
    // Not required() of the parser, because a config file may give them.
    check_flags(*command, *flags);
    train(*flags);
  });
}

}  // namespace braid
