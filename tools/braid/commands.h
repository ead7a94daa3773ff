#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/error.h"
#include "braid/model/adaptation.h"

namespace braid {

/// A command line that parses but makes no sense: exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Calls `parse` on the text of a flag: what it refuses as usage is bad usage of the command line.
template <class Parse>
auto from_flag(Parse&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kUsage) throw UsageError(error.what());
    throw;
  }
}

// One file each. A command registers its options and a callback that runs when it was chosen.
void add_run_command(CLI::App& app);
void add_logits_command(CLI::App& app);
void add_train_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_merge_experts_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_tokenizer_command(CLI::App& app);
void add_bench_command(CLI::App& app);

/// --device and --threads, the same everywhere.
struct DeviceFlags {
  std::string device = "cpu";
  int threads = 0;

  void add(CLI::App& command);
  Context context(uint64_t seed = 0) const;
};

/// --adapt and its options, the same everywhere.
struct AdaptFlags {
  bool on = false;
  AdaptationOptions options;

  void add(CLI::App& command);
  /// Nothing where the flag is not set.
  std::optional<Adaptation> adaptation(Context& ctx, const Stack& stack) const;
};

/// "1,2,3" (or spaces), "-" for standard input, "@FILE". Throws UsageError for what is no id.
std::vector<int32_t> parse_tokens(const std::string& text, const char* flag);
/// The text itself, or all of standard input for "-".
std::string text_or_stdin(const std::string& text);
/// Refuses invalid UTF-8 with the offset of its first byte.
void check_utf8(const std::string& text, const char* what);

/// One line on stderr, `braid: MESSAGE`.
void report_error(std::string message);

/// Flushes what was written to stdout, and fails if it did not arrive.
void write_stdout(std::string_view text);

}  // namespace braid
