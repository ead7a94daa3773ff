#include "braid/model/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "braid/model/tokenizer/trainer.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

struct EncodeFlags {
  std::string tokenizer, text = "-";
  bool special = false;
};
struct DecodeFlags {
  std::string tokenizer, tokens;
  bool skip_special = false;
};
struct TrainFlags {
  std::vector<std::string> data;
  std::string out;
  BpeTrainOptions options;
};

void encode(const EncodeFlags& flags) {
  const auto tokenizer = Tokenizer::load(flags.tokenizer);
  const std::string text = text_or_stdin(flags.text);
  check_utf8(text, "--text");
  const std::vector<int32_t> ids = tokenizer->encode(text, {.special = flags.special});
  write_stdout(fmt::format("{}\n", fmt::join(ids, " ")));
}

void decode(const DecodeFlags& flags) {
  const auto tokenizer = Tokenizer::load(flags.tokenizer);
  const std::vector<int32_t> ids = parse_tokens(flags.tokens, "--tokens");
  write_stdout(tokenizer->decode(ids, {.skip_special = flags.skip_special}));
}

void train(TrainFlags& flags) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  int shown = -1;
  if (terminal) {
    flags.options.progress = [&](std::string_view stage, double done) {
      const int percent = static_cast<int>(100 * done);
      if (percent != shown) fmt::print(stderr, "\r{:<20}{:3}%", stage, percent);
      shown = percent;
    };
  }
  const std::vector<std::filesystem::path> files(flags.data.begin(), flags.data.end());
  const BpeTrainResult result = train_byte_level_bpe(files, flags.out, flags.options);
  if (terminal) fmt::print(stderr, "\r{:24}\r", "");
  write_stdout(fmt::format("{}: {} tokens from {} different words in {} bytes\n", flags.out,
                           result.vocab_size, result.words, result.bytes));
}

constexpr const char* kTokenizerHelp =
    "tokenizer.json, a directory with one, a world vocabulary, or the word bytes";

void add_encode(CLI::App& app) {
  auto flags = std::make_shared<EncodeFlags>();
  CLI::App* command = app.add_subcommand("encode", "Print the ids of a text on one line");
  command->add_option("--tokenizer", flags->tokenizer, kTokenizerHelp)->required();
  command->add_option("--text", flags->text, "the text, or - for standard input")
      ->capture_default_str();
  command->add_flag("--special", flags->special, "add the tokens around a text, such as its start");
  command->callback([flags] { encode(*flags); });
}

void add_decode(CLI::App& app) {
  auto flags = std::make_shared<DecodeFlags>();
  CLI::App* command = app.add_subcommand("decode", "Print the text of ids");
  command->add_option("--tokenizer", flags->tokenizer, kTokenizerHelp)->required();
  command->add_option("--tokens", flags->tokens, "1,2,3, - for standard input, or @FILE")
      ->required();
  command->add_flag("--skip-special", flags->skip_special, "leave special tokens out");
  command->callback([flags] { decode(*flags); });
}

void add_train(CLI::App& app) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = app.add_subcommand("train", "Learn a byte-level BPE vocabulary from text");
  command->add_option("--data", flags->data, "UTF-8 files, documents separated by <|endoftext|>")
      ->required();
  command->add_option("--vocab", flags->options.vocab_size, "tokens in all")->required();
  command->add_option("--out", flags->out, "the tokenizer.json to write")->required();
  command->add_option("--threads", flags->options.threads, "0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->callback([flags] { train(*flags); });
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenizer", "Encode and decode text, learn a vocabulary");
  command->require_subcommand(1);
  add_encode(*command);
  add_decode(*command);
  add_train(*command);
}

}  // namespace braid
