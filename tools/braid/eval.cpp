#include <fmt/core.h>

#include "braid/train/evaluate.h"
#include "braid/train/loader.h"
#include "braid/train/tasks/task_source.h"
#include "tools/braid/commands.h"
#include "tools/braid/experts.h"
#include "tools/braid/model_text.h"
#include "tools/braid/progress.h"

namespace braid {
namespace {

struct EvalFlags {
  std::string model, task;
  std::vector<std::string> data;
  TextSetOptions text{.length = 0};
  int64_t examples = 1000, window = 0, batch_tokens = 8192;
  uint64_t seed = 0;
  AdaptFlags adapt;
  ExpertFlags experts;
  DeviceFlags device;
};

Evaluation eval_set(Context& ctx, const EvalFlags& flags, const SharedModel& model,
                    const EvaluationSet& set) {
  const auto adaptation = flags.adapt.adaptation(ctx, model.stack());
  EvaluateOptions options{.batch_tokens = flags.batch_tokens,
                          .window = flags.window,
                          .adaptation = adaptation ? &*adaptation : nullptr,
                          .expert_parallel = model.host.get()};
  std::optional<ProgressLine> line;
  if (model.first()) {
    line.emplace("eval");
    options.progress = [&](int64_t done, int64_t total) { line->update(done, total, "sequences"); };
  }
  return evaluate(ctx, model.stack(), set, options);
}

std::string eval_task(Context& ctx, const EvalFlags& flags, const SharedModel& model) {
  const TaskExamples examples =
      from_flag([&] { return TaskExamples(flags.task, flags.seed, TaskSplit::kHeldOut); });
  const int64_t vocab = examples.task->shape().vocab;
  if (vocab > model.stack().config().vocab) {
    throw UsageError(
        fmt::format("--task: {} has a vocabulary of {}, want at most the {} of the model",
                    flags.task, vocab, model.stack().config().vocab));
  }
  const Evaluation e = eval_set(ctx, flags, model, TaskSet(examples, flags.examples));
  return fmt::format("accuracy {:.6f}\nloss {:.6f}\nanswers {}\nexamples {}\n", e.accuracy, e.loss,
                     e.targets, flags.examples);
}

std::string eval_text(Context& ctx, const EvalFlags& flags, const SharedModel& model) {
  const ModelText data(ctx, flags.model, model.stack().config(), flags.data, flags.text);
  const Evaluation e = eval_set(ctx, flags, model, data.set());
  std::string text = fmt::format(
      "loss {:.6f}\nperplexity {:.4f}\nbits_per_byte {:.6f}\ntokens {}\nbytes {:.0f}\n"
      "accuracy {:.6f}\n",
      e.loss, e.perplexity(), e.bits_per_byte, e.targets, e.bytes, e.accuracy);
  for (size_t i = 0; i < e.windows.size(); ++i) {
    text += fmt::format("positions {}.. loss {:.6f} tokens {}\n",
                        static_cast<int64_t>(i) * flags.window, e.windows[i].loss,
                        e.windows[i].targets);
  }
  return text;
}

void eval(const EvalFlags& flags) {
  if (flags.task.empty() == flags.data.empty()) {
    throw UsageError("eval: want --data or --task, one of the two");
  }
  run_ranks(flags.experts, flags.device, [&](Context& ctx, Transport* transport) {
    const SharedModel model = load_shared(ctx, transport, flags.experts, flags.model);
    const std::string text =
        flags.task.empty() ? eval_text(ctx, flags, model) : eval_task(ctx, flags, model);
    model.finish(ctx);
    if (model.first()) write_stdout(text);
    model.print_report();
  });
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command =
      app.add_subcommand("eval", "How well a model predicts text or answers a task");
  command->add_option("--model", flags->model, "model directory")->required();
  command->add_option("--data", flags->data,
                      "text (documents end with a line <|endoftext|>) or .tokens files");
  command->add_option("--task", flags->task, "a synthetic task: " + task_names());
  command->add_option("--examples", flags->examples, "of the task, held out from training")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "of the examples")->capture_default_str();
  command
      ->add_option("--length", flags->text.length,
                   "longest sequence; the model's own context (at most 2048) when left out")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--max-tokens", flags->text.max_tokens,
                   "read about this many tokens, evenly spread; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--window", flags->window,
                   "of text, the loss by position too, in windows of this many tokens")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--batch-tokens", flags->batch_tokens,
                   "of whole sequences that are read together (on each worker)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  flags->adapt.add(*command);
  flags->experts.add(*command);
  flags->device.add(*command);
  command->callback([flags] { eval(*flags); });
}

}  // namespace braid
