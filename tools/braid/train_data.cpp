#include "tools/braid/train_data.h"

#include <fmt/core.h>

#include <filesystem>
#include <optional>

#include "braid/core/file.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "braid/train/byte_tokenizer.h"
#include "braid/train/document_encoder.h"
#include "braid/train/tasks/task_source.h"
#include "tools/braid/commands.h"
#include "tools/braid/progress.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

class TextData final : public TrainData {
 public:
  explicit TextData(const TrainDataFlags& flags)
      : flags_(flags), tokenizer_(Tokenizer::load(flags.tokenizer)) {}

  void configure(ModelConfig& config) const override {
    config.vocab = tokenizer_->vocab_size();
    config.max_context = flags_.loader.length;
    config.bos = tokenizer_->bos_id();
    if (const auto end = tokenizer_->end_of_document_id()) config.eos = {*end};
  }

  std::string tokenizer_json() const override {
    const fs::path path = flags_.tokenizer;
    if (path == "bytes") return byte_tokenizer_json();
    return read_text(fs::is_directory(path) ? path / "tokenizer.json" : path);
  }

  void open(Context& ctx, const RunDirectory& directory) override {
    text_.emplace(read(ctx, flags_.data, directory));
    source_ = std::make_unique<Loader>(*text_, flags_.loader);
    if (flags_.valid.empty()) return;
    valid_.emplace(read(ctx, {flags_.valid}, directory));
    evaluations_.push_back(std::make_unique<TextSet>(
        *valid_, TextSetOptions{.length = flags_.loader.length, .max_tokens = flags_.eval_tokens}));
  }

 private:
  Dataset read(Context& ctx, const std::vector<std::string>& files,
               const RunDirectory& directory) const {
    const DocumentEncoder encoder =
        document_encoder(tokenizer_, static_cast<int32_t>(tokenizer_->vocab_size()));
    ProgressLine line("tokenise");
    const std::vector<fs::path> paths(files.begin(), files.end());
    return Dataset::open(paths, encoder, ctx.threads(), directory.data(),
                         [&](int64_t done, int64_t total) { line.update(done, total); });
  }

  TrainDataFlags flags_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::optional<Dataset> text_, valid_;
};

// Held-out examples of the task itself come first: they decide when a run stops early.
class TaskData final : public TrainData {
 public:
  explicit TaskData(const TrainDataFlags& flags) {
    const uint64_t seed = flags.loader.seed;
    from_flag([&] {
      const TaskExamples examples(flags.task, seed, TaskSplit::kTrain);
      shape_ = examples.task->shape();
      source_ = std::make_unique<TaskSource>(examples, flags.loader.batch);
      add_evaluation(flags, flags.task);
      for (const std::string& spec : flags.eval_tasks) add_evaluation(flags, spec);
    });
  }

  void configure(ModelConfig& config) const override {
    config.vocab = shape_.vocab;
    config.max_context = shape_.length;
  }

  void open(Context&, const RunDirectory&) override {}

 private:
  void add_evaluation(const TrainDataFlags& flags, const std::string& spec) {
    const TaskExamples examples(spec, flags.loader.seed, TaskSplit::kHeldOut);
    const int64_t vocab = examples.task->shape().vocab;
    if (vocab > shape_.vocab) {
      throw UsageError(
          fmt::format("--eval-task: {} has a vocabulary of {}, want at most the {} of "
                      "--task",
                      spec, vocab, shape_.vocab));
    }
    evaluations_.push_back(std::make_unique<TaskSet>(examples, flags.eval_examples));
  }

  TaskShape shape_;
};

}  // namespace

std::vector<const EvaluationSet*> TrainData::evaluations() const {
  std::vector<const EvaluationSet*> sets;
  for (const auto& set : evaluations_) sets.push_back(set.get());
  return sets;
}

std::unique_ptr<TrainData> make_train_data(const TrainDataFlags& flags) {
  if (flags.task.empty()) return std::make_unique<TextData>(flags);
  return std::make_unique<TaskData>(flags);
}

std::string describe(const EvaluationSet& set, const Evaluation& e) {
  if (e.bytes == 0)
    return fmt::format("{}: accuracy {:.4f}, loss {:.4f}", set.name(), e.accuracy, e.loss);
  return fmt::format("validation loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte", e.loss,
                     e.perplexity(), e.bits_per_byte);
}

}  // namespace braid
