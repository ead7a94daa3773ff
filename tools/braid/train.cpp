#include <fmt/core.h>

#include <filesystem>

#include "braid/core/file.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "braid/train/byte_tokenizer.h"
#include "braid/train/document_encoder.h"
#include "braid/train/gemm_peak.h"
#include "braid/train/trainer.h"
#include "tools/braid/commands.h"
#include "tools/braid/config_file.h"
#include "tools/braid/progress.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct TrainFlags {
  std::string config, stack, tokenizer, valid, out, dtype = "bf16", compute = "f32";
  std::vector<std::string> data;
  int64_t width = 0;
  bool tied = true, resume = false, recompute = false;
  uint64_t seed = 0;
  int keep = 2;
  double lr = 1e-3, min_lr = 0;
  int64_t warmup = 100;
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

ModelConfig model_config(const TrainFlags& flags, const Tokenizer& tokenizer) {
  ModelConfig config;
  config.vocab = tokenizer.vocab_size();
  config.width = flags.width;
  config.sublayers = parse_stack(flags.stack);
  config.tied = flags.tied;
  config.max_context = flags.trainer.loader.length;
  config.dtype = parse_dtype(flags.dtype);
  config.bos = tokenizer.bos_id();
  if (const auto end = tokenizer.end_of_document_id()) config.eos = {*end};
  return config;
}

// What --stack and --width say is usage, wherever it is refused.
std::unique_ptr<Stack> build_stack(const TrainFlags& flags, const Tokenizer& tokenizer) {
  return from_flag([&] {
    return std::make_unique<Stack>(model_config(flags, tokenizer),
                                   StackOptions{.trainable = true,
                                                .matrix_dtype = parse_dtype(flags.compute),
                                                .recompute = flags.recompute});
  });
}

// What the model directory carries as its tokenizer.json.
std::string tokenizer_file(const fs::path& tokenizer) {
  if (tokenizer == "bytes") return byte_tokenizer_json();
  return read_text(fs::is_directory(tokenizer) ? tokenizer / "tokenizer.json" : tokenizer);
}

Dataset open_data(Context& ctx, const std::vector<std::string>& files,
                  const DocumentEncoder& encoder, const fs::path& cache) {
  ProgressLine line("tokenise");
  const std::vector<fs::path> paths(files.begin(), files.end());
  return Dataset::open(paths, encoder, ctx.threads(), cache,
                       [&](int64_t done, int64_t total) { line.update(done, total); });
}

TrainerObserver observer_of(ProgressLine& line, int64_t steps) {
  return {.on_step =
              [&line, steps](const StepReport& r) {
                std::string detail = fmt::format("step {}  loss {:.3f}  {} tokens/s", r.step,
                                                 r.loss, short_count(r.tokens_per_s));
                if (r.gemm_share > 0) {
                  detail += fmt::format("  {:.0f}% of GEMM peak", 100 * r.gemm_share);
                }
                line.update(r.step, steps, detail);
              },
          .on_evaluation =
              [&line](int64_t step, const Evaluation& e) {
                line.note(fmt::format(
                    "step {}: validation loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte",
                    step, e.loss, e.perplexity, e.bits_per_byte));
              }};
}

void train(TrainFlags& flags) {
  flags.trainer.loader.seed = flags.seed;
  flags.trainer.schedule.peak = flags.lr;
  flags.trainer.schedule.floor = flags.min_lr;
  flags.trainer.schedule.warmup = flags.warmup;

  Context ctx = flags.device.context(flags.seed);
  const auto tokenizer = Tokenizer::load(flags.tokenizer);
  const std::unique_ptr<Stack> built = build_stack(flags, *tokenizer);
  Stack& stack = *built;
  const ModelConfig& config = stack.config();

  RunDirectory directory(flags.out, {.dtype = parse_dtype(flags.dtype),
                                     .keep = flags.keep,
                                     .tokenizer_json = tokenizer_file(flags.tokenizer)});
  if (!flags.resume && directory.checkpoints().latest()) {
    throw UsageError(fmt::format(
        "--out: {} already holds a run; go on with --resume or choose another directory",
        flags.out));
  }
  const DocumentEncoder encoder = document_encoder(tokenizer, static_cast<int32_t>(config.vocab));
  const Dataset data = open_data(ctx, flags.data, encoder, directory.data());
  std::optional<Dataset> valid;
  if (!flags.valid.empty()) valid = open_data(ctx, {flags.valid}, encoder, directory.data());

  stack.initialize(ctx, Rng(flags.seed));
  flags.trainer.gemm_peak_flops = measure_gemm_flops(ctx, parse_dtype(flags.compute));
  Trainer trainer(ctx, stack, data, valid ? &*valid : nullptr, directory, flags.trainer);
  const bool resumed = flags.resume && trainer.resume();

  ProgressLine line("train");
  const Loader loader(data, flags.trainer.loader);
  const int64_t steps = flags.trainer.schedule.steps;
  line.note(fmt::format(
      "{} parameters, {} tokens of text, {:.2f} passes over it in {} steps{}; GEMM peak {:.0f} "
      "GFLOP/s",
      short_count(static_cast<double>(stack.parameter_count())),
      short_count(static_cast<double>(data.tokens())),
      loader.epochs(steps * flags.trainer.accumulate), steps,
      resumed ? fmt::format(", resumed at {}", trainer.steps_done()) : "",
      flags.trainer.gemm_peak_flops / 1e9));
  trainer.run(observer_of(line, steps));
}

void add_model_options(CLI::App& command, TrainFlags& flags) {
  command.add_option("--config", flags.config,
                     "JSON object of long option names; the command line wins");
  command.add_option("--stack", flags.stack, "the sublayers, e.g. \"(swa:256 swiglu)x4\"");
  command.add_option("--width", flags.width, "of the residual stream")->check(CLI::PositiveNumber);
  command.add_option("--tokenizer", flags.tokenizer, "tokenizer.json, or bytes");
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
  command.add_option("--data", flags.data,
                     "text (documents end with a line <|endoftext|>) or .tokens files");
  command.add_option("--valid", flags.valid, "text to evaluate on");
  command.add_option("--length", t.loader.length, "longest sequence")->check(CLI::PositiveNumber);
  command.add_option("--batch", t.loader.batch, "sequences' worth of tokens at a time")
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
      .add_option("--eval-tokens", t.eval_tokens,
                  "evaluate on about this many tokens, evenly spread; 0: all")
      ->check(CLI::NonNegativeNumber)
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
  command.add_option("--seed", flags.seed, "of the weights and of the order of the text")
      ->capture_default_str();
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = app.add_subcommand("train", "Train a stack on text");
  add_model_options(*command, *flags);
  add_data_options(*command, *flags);
  add_optimizer_options(*command, *flags);
  flags->device.add(*command);
  command->callback([flags, command] {
    if (!flags->config.empty()) apply_config_file(*command, flags->config);
    // Not required() of the parser, because a config file may give them.
    require_options(*command, {"--stack", "--width", "--tokenizer", "--data", "--length", "--batch",
                               "--steps", "--out"});
    train(*flags);
  });
}

}  // namespace braid
