#include <fmt/core.h>

#include "braid/model/checkpoint.h"
#include "braid/model/presets.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

struct InspectFlags {
  std::string model, stack, preset;
  int64_t width = 0, vocab = 32000, context = 0;
};

std::string count(int64_t n) {
  const auto value = static_cast<double>(n);
  if (n >= 1'000'000'000) return fmt::format("{:.2f}B", value / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.2f}M", value / 1e6);
  if (n >= 10'000) return fmt::format("{:.1f}K", value / 1e3);
  return std::to_string(n);
}

std::string bytes(int64_t n) {
  const auto value = static_cast<double>(n);
  if (n >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", value / 0x1p30);
  if (n >= int64_t{1} << 20) return fmt::format("{:.2f} MiB", value / 0x1p20);
  return fmt::format("{:.1f} KiB", value / 0x1p10);
}

struct StateColumn {
  int64_t context;
  std::string label;
  int64_t total = 0;
};

void print(const Stack& stack, int64_t context) {
  const ModelConfig& config = stack.config();
  fmt::print("{}\n", print_stack(config.sublayers));
  fmt::print("width {}, vocabulary {}, {} embedding, weights {}\n\n", config.width, config.vocab,
             config.tied ? "tied" : "untied", to_string(config.dtype));
  std::vector<StateColumn> states{{1024, "1K"}, {65536, "64K"}, {1'000'000, "1M"}};
  if (context > 0) states = {{context, std::to_string(context)}};
  fmt::print("{:>4}  {:24} {:>10} {:>10} {:>12}", "", "sublayer", "parameters", "active",
             "FLOPs/token");
  for (const StateColumn& at : states) {
    fmt::print(" {:>11}", (&at == states.data() ? "state at " : "") + at.label);
  }
  fmt::print("\n");
  const auto specs = stack.state_specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    const Stack::Residual& residual = stack.sublayers()[i];
    int64_t parameters = 0;
    double flops = 0, active = 0;
    std::string name;
    for (size_t b = 0; b < residual.branches.size(); ++b) {
      name += (b == 0 ? "" : "|") + residual.names[b];
      for (const SpecArg& arg : config.sublayers[i].branches[b].args) {
        if (arg.key == "share") name += ":share=" + arg.value;
      }
      for (const Parameter* p : residual.branches[b]->parameters()) {
        parameters += p->shape.count();
        active += p->active * static_cast<double>(p->shape.count());
      }
      flops += residual.branches[b]->matmul_flops();
    }
    fmt::print("{:>4}  {:24} {:>10} {:>10} {:>12}", i, name, count(parameters),
               count(static_cast<int64_t>(active)), count(static_cast<int64_t>(flops)));
    for (StateColumn& at : states) {
      const int64_t size = state_bytes(specs[i], at.context);
      at.total += size;
      fmt::print(" {:>11}", bytes(size));
    }
    fmt::print("\n");
  }
  fmt::print("\nparameters: {} total, {} active a token\n", count(stack.parameter_count()),
             count(stack.active_parameter_count()));
  fmt::print("weights in memory: {}\n", bytes(stack.weight_bytes()));
  fmt::print("matrix FLOPs a token: {}\n", count(static_cast<int64_t>(stack.matmul_flops())));
  std::string totals;
  for (const StateColumn& at : states) {
    totals += fmt::format("{}{} at {}{}", totals.empty() ? "" : ", ", bytes(at.total), at.label,
                          totals.empty() ? " tokens" : "");
  }
  fmt::print("state a sequence: {}\n", totals);
}

void inspect(const InspectFlags& flags) {
  if (!flags.model.empty() + !flags.stack.empty() + !flags.preset.empty() != 1) {
    throw UsageError("inspect: want --model DIR, --stack SPEC or --preset NAME, one of them");
  }
  if (!flags.preset.empty()) {
    print(Stack(from_flag([&] { return preset_config(find_preset(flags.preset)); })),
          flags.context);
    return;
  }
  if (!flags.model.empty()) {
    print(Stack(Checkpoint::open(flags.model).config()), flags.context);
    return;
  }
  if (flags.width <= 0) throw UsageError("inspect: --stack wants --width as well");
  ModelConfig config;
  config.width = flags.width;
  config.vocab = flags.vocab;
  const auto stack = from_flag([&] {
    config.sublayers = parse_stack(flags.stack);
    return std::make_unique<Stack>(config);
  });
  print(*stack, flags.context);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show sublayers, parameters and state of a model or a spec");
  command->add_option("--model", flags->model, "model directory");
  command->add_option("--stack", flags->stack, "stack spec, e.g. \"(mamba2 swa:256 swiglu)x4\"");
  command->add_option("--preset", flags->preset, "a known stack: " + preset_names());
  command->add_option("--width", flags->width, "model width, with --stack")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--vocab", flags->vocab, "vocabulary, with --stack")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command
      ->add_option("--context", flags->context,
                   "tokens to give the state for; 1K, 64K and 1M when left out")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->callback([flags] { inspect(*flags); });
}

}  // namespace braid
