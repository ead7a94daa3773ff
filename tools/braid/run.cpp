#include <fmt/core.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "braid/infer/model.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

struct RunFlags {
  std::string model, prompt, tokens, session;
  int64_t max_tokens = 256;
  SamplerOptions sampler;
  bool print_tokens = false, ignore_eos = false, stats = false;
  AdaptFlags adapt;
  DeviceFlags device;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<int32_t> prompt_tokens(const RunFlags& flags, const Model& model, bool fresh) {
  if (!flags.tokens.empty()) return parse_tokens(flags.tokens, "--tokens");
  if (flags.prompt.empty()) {
    // A new text begins with what the tokenizer puts in front of every text.
    return fresh && model.has_tokenizer() ? model.tokenizer().encode("", {.special = true})
                                          : std::vector<int32_t>{};
  }
  const std::string text = text_or_stdin(flags.prompt);
  check_utf8(text, "--prompt");
  return model.tokenizer().encode(text, {.special = fresh});
}

void print_stats(const Session& session, size_t prompt, double prompt_s, int64_t made,
                 double made_s) {
  std::fputs(fmt::format("\n[prompt {} tokens, {:.1f} tokens/s | made {} tokens, {:.1f} tokens/s "
                         "| position {}, state {:.2f} MiB]\n",
                         prompt, static_cast<double>(prompt) / std::max(prompt_s, 1e-9), made,
                         static_cast<double>(made) / std::max(made_s, 1e-9), session.position(),
                         static_cast<double>(session.state_bytes()) / 0x1p20)
                 .c_str(),
             stderr);
}

void run(const RunFlags& flags) {
  Sampler sampler = from_flag([&] { return Sampler(flags.sampler); });
  Context ctx = flags.device.context(flags.sampler.seed);
  const Model model = Model::load(ctx, flags.model);
  const auto adaptation = flags.adapt.adaptation(ctx, model.stack());
  Session session = model.session(ctx, {.adaptation = adaptation ? &*adaptation : nullptr});
  const bool resumed = !flags.session.empty() && std::filesystem::exists(flags.session);
  if (resumed) session.load(flags.session);

  const std::vector<int32_t> prompt = prompt_tokens(flags, model, !resumed);
  if (prompt.empty() && session.position() == 0 && flags.max_tokens > 0) {
    throw UsageError("run: nothing to continue, want --prompt, --tokens or a saved --session");
  }
  auto start = std::chrono::steady_clock::now();
  session.append(ctx, prompt);
  const double prompt_s = seconds_since(start);

  start = std::chrono::steady_clock::now();
  const bool text = !flags.print_tokens;
  std::optional<StreamingDecoder> decoder;
  if (text && flags.max_tokens > 0) {
    decoder.emplace(model.tokenizer(), DecodeOptions{.continuation = !flags.prompt.empty()});
  }
  const char* separator = "";
  const int64_t made = session.generate(ctx, sampler, flags.max_tokens, [&](int32_t token) {
    // An end-of-text id ends a text; who asks for ids gets as many as asked for.
    const bool end = text && !flags.ignore_eos && model.ends(token);
    if (text) {
      if (!end) write_stdout(decoder->push(token));
    } else {
      write_stdout(separator + std::to_string(token));
      separator = ",";
    }
    return !end;
  });
  if (text && decoder) write_stdout(decoder->finish() + "\n");
  if (!text) write_stdout("\n");
  if (flags.stats) print_stats(session, prompt.size(), prompt_s, made, seconds_since(start));
  if (!flags.session.empty()) session.save(ctx, flags.session);
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Continue a prompt; the text streams to stdout");
  command->add_option("--model", flags->model, "model directory")->required();
  auto* prompt = command->add_option("--prompt", flags->prompt, "text to continue; - reads stdin");
  command->add_option("--tokens", flags->tokens, "ids instead of text: 1,2,3 or - or @FILE")
      ->excludes(prompt);
  command->add_option("--max-tokens", flags->max_tokens, "stop after this many new tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--temperature", flags->sampler.temperature, "0 takes the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", flags->sampler.top_p, "keep the likeliest tokens up to this mass")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str();
  command->add_option("--top-k", flags->sampler.top_k, "keep this many tokens; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", flags->sampler.seed, "same seed, same text")->capture_default_str();
  command->add_flag("--print-tokens", flags->print_tokens,
                    "print the new ids instead of text, past any end of text");
  command->add_flag("--ignore-eos", flags->ignore_eos, "go on past the end of a text");
  command->add_flag("--stats", flags->stats, "speed and state size on stderr at the end");
  command->add_option("--session", flags->session,
                      "continue from this file if it exists; write it back afterwards");
  flags->adapt.add(*command);
  flags->device.add(*command);
  command->callback([flags] { run(*flags); });
}

}  // namespace braid
