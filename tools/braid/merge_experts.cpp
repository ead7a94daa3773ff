#include "braid/train/experts/merge_experts.h"

#include <fmt/core.h>

#include "braid/model/checkpoint.h"
#include "braid/model/stack_spec.h"
#include "tools/braid/commands.h"
#include "tools/braid/model_text.h"

namespace braid {
namespace {

struct MergeFlags {
  std::string model, out;
  std::vector<std::string> data;
  TextSetOptions text{.length = 0, .max_tokens = 65536};
  MergeExpertsOptions merge;
  DeviceFlags device;
};

std::string loss_change(double before, double after) {
  return fmt::format("loss {:.6f} -> {:.6f} ({:+.4f}%)", before, after, 100 * (after / before - 1));
}

void print(const Evaluation& evaluation, const std::vector<LayerSurvey>& layers) {
  std::string text = fmt::format("loss {:.6f}, tokens {}\n", evaluation.loss, evaluation.targets);
  for (const LayerSurvey& layer : layers) {
    std::string loads;
    for (const int64_t load : layer.loads) loads += fmt::format(" {}", load);
    text += fmt::format(
        "sublayer {}: {} experts, {} chosen; closest two at {:.4f}; {} within the threshold; "
        "tokens{}\n",
        layer.sublayer, layer.experts, layer.top_k, layer.least_error, layer.pairs, loads);
  }
  write_stdout(text);
}

void print(const MergeAttempt& attempt) {
  write_stdout(
      fmt::format("{} sublayer {}: experts {} and {} of {} at {:.4f}, tokens {} and {}; {}\n",
                  attempt.accepted ? "merged" : "kept", attempt.sublayer, attempt.pair.i,
                  attempt.pair.j, attempt.experts, attempt.pair.error, attempt.load_i,
                  attempt.load_j, loss_change(attempt.loss_before, attempt.loss_after)));
}

void merge(const MergeFlags& flags) {
  from_flag([&] { check_options(flags.merge); });
  Context ctx = flags.device.context();
  const Checkpoint checkpoint = Checkpoint::open(flags.model);
  EditedModel model(checkpoint);
  check_mergeable(model.config());
  const ModelText text(ctx, flags.model, model.config(), flags.data, flags.text);
  const MergeResult result =
      merge_experts(ctx, model, text.set(), flags.merge,
                    {.on_survey = [](const Evaluation& e, const auto& l) { print(e, l); },
                     .on_attempt = [](const MergeAttempt& attempt) { print(attempt); }});
  model.save(flags.out);
  write_stdout(fmt::format("merges {}; {}\nstack {}\n", result.merges,
                           loss_change(result.loss_before, result.loss_after),
                           print_stack(model.config().sublayers)));
}

}  // namespace

void add_merge_experts_command(CLI::App& app) {
  auto flags = std::make_shared<MergeFlags>();
  CLI::App* command = app.add_subcommand(
      "merge-experts", "Merge experts that have become one function, as long as the loss allows");
  MergeExpertsOptions& merge_options = flags->merge;
  command->add_option("--model", flags->model, "model directory")->required();
  command
      ->add_option("--data", flags->data,
                   "text to measure on, best held out from training, or .tokens files")
      ->required();
  command
      ->add_option("--max-loss-increase", merge_options.max_loss_increase,
                   "as a share of the model's loss: 0.001 is 0.1%")
      ->required();
  command->add_option("--out", flags->out, "directory of the merged model")->required();
  command
      ->add_option("--threshold", merge_options.threshold,
                   "largest relative error of two experts' outputs; unrelated ones have 1.41")
      ->capture_default_str();
  command->add_option("--max-merges", merge_options.max_merges, "0: as many as the loss allows")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--tokens", flags->text.max_tokens,
                   "of the text to measure on, evenly spread; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--length", flags->text.length,
                   "longest sequence; the model's own context (at most 2048) when left out")
      ->check(CLI::PositiveNumber);
  command->add_option("--sample", merge_options.rows, "tokens on which functions are compared")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", merge_options.seed, "of the sample")->capture_default_str();
  flags->device.add(*command);
  command->callback([flags] { merge(*flags); });
}

}  // namespace braid
