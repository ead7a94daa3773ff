#include <fmt/core.h>

#include <filesystem>

#include "braid/infer/model.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "braid/train/document_encoder.h"
#include "braid/train/evaluate.h"
#include "tools/braid/commands.h"
#include "tools/braid/progress.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct EvalFlags {
  std::string model;
  std::vector<std::string> data;
  EvaluationOptions options{.length = 0};
  DeviceFlags device;
};

// A folder for the token files of this call, removed with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "braid-eval-XXXXXX").string();
    check(::mkdtemp(name.data()) != nullptr, ErrorKind::kIo, "cannot create {}", name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void eval(const EvalFlags& flags) {
  constexpr int64_t kLongestDefault = 2048;
  Context ctx = flags.device.context();
  const Model model = Model::load(ctx, flags.model);
  EvaluationOptions options = flags.options;
  if (options.length == 0) {
    const int64_t context = model.config().max_context;
    options.length = context > 0 ? std::min(context, kLongestDefault) : kLongestDefault;
  }
  const TemporaryFolder cache;
  ProgressLine line("eval");
  const auto encoder =
      document_encoder(Tokenizer::load(flags.model), static_cast<int32_t>(model.config().vocab));
  const std::vector<fs::path> paths(flags.data.begin(), flags.data.end());
  const Dataset data = Dataset::open(paths, encoder, ctx.threads(), cache.path());
  const Evaluation e =
      evaluate(ctx, model.stack(), data, options,
               [&](int64_t done, int64_t total) { line.update(done, total, "tokens"); });
  write_stdout(
      fmt::format("loss {:.6f}\nperplexity {:.4f}\nbits_per_byte {:.6f}\ntokens {}\nbytes {:.0f}\n",
                  e.loss, e.perplexity, e.bits_per_byte, e.tokens, e.bytes));
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command =
      app.add_subcommand("eval", "Loss, perplexity and bits per byte of a model on text");
  command->add_option("--model", flags->model, "model directory")->required();
  command
      ->add_option("--data", flags->data,
                   "text (documents end with a line <|endoftext|>) or .tokens files")
      ->required();
  command
      ->add_option("--length", flags->options.length,
                   "longest sequence; the model's own context (at most 2048) when left out")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--max-tokens", flags->options.max_tokens,
                   "read about this many tokens, evenly spread; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  flags->device.add(*command);
  command->callback([flags] { eval(*flags); });
}

}  // namespace braid
