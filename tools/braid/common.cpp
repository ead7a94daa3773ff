#include <fmt/core.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include "braid/core/file.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "tools/braid/commands.h"

namespace braid {

void DeviceFlags::add(CLI::App& command) {
  command.add_option("--device", device, "cpu, cuda or cuda:INDEX")->capture_default_str();
  command.add_option("--threads", threads, "threads of the CPU; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

Context DeviceFlags::context(uint64_t seed) const {
  const Device parsed = from_flag([this] { return parse_device(device); });
  return Context({.device = parsed, .threads = threads, .seed = seed});
}

void AdaptFlags::add(CLI::App& command) {
  auto* adapt = command.add_flag(
      "--adapt", on, "learn while reading: a low-rank correction of the last hidden rows");
  const auto option = [&](const char* name, auto& value, const char* what) {
    command.add_option(name, value, what)->needs(adapt)->capture_default_str();
  };
  option("--adapt-rate", options.rate, "nats that a token met gains in like places");
  option("--adapt-horizon", options.horizon, "tokens after which what was learned fades to 1/e");
  option("--adapt-rank", options.rank, "of the correction; 0: 64, or the width where less");
  option("--adapt-batch", options.batch, "tokens an update");
}

std::optional<Adaptation> AdaptFlags::adaptation(Context& ctx, const Stack& stack) const {
  if (!on) return std::nullopt;
  return from_flag([&] { return std::optional<Adaptation>(std::in_place, ctx, stack, options); });
}

std::string text_or_stdin(const std::string& text) {
  if (text != "-") return text;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::vector<int32_t> parse_tokens(const std::string& text, const char* flag) {
  const std::string list = text.starts_with("@") ? read_text(text.substr(1)) : text_or_stdin(text);
  std::vector<int32_t> tokens;
  size_t at = 0;
  constexpr const char* kSeparators = ", \t\r\n";
  while ((at = list.find_first_not_of(kSeparators, at)) != std::string::npos) {
    const size_t end = std::min(list.find_first_of(kSeparators, at), list.size());
    int32_t token = 0;
    const auto [rest, error] = std::from_chars(list.data() + at, list.data() + end, token);
    if (error != std::errc{} || rest != list.data() + end || token < 0) {
      throw UsageError(fmt::format("{}: '{}' is not a token id, want numbers like 1,2,3", flag,
                                   list.substr(at, std::min<size_t>(end - at, 20))));
    }
    tokens.push_back(token);
    at = end;
  }
  return tokens;
}

void check_utf8(const std::string& text, const char* what) {
  const std::optional<size_t> bad = invalid_utf8_offset(text);
  check(!bad, "{}: invalid UTF-8 at byte {}", what, bad.value_or(0));
}

// One line whatever it quotes: names from files and flags may hold line breaks and terminal
// sequences.
void report_error(std::string message) {
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  }
  std::fprintf(stderr, "braid: %s\n", message.c_str());
}

void write_stdout(std::string_view text) {
  const bool written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  const int error = errno;  // read after the write: arguments have no order
  check(written, ErrorKind::kIo, "cannot write the output: {}", std::strerror(error));
}

}  // namespace braid
