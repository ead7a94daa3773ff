#include <numeric>

#include "braid/infer/model.h"
#include "braid/model/safetensors.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

struct LogitsFlags {
  std::string model, tokens, out, pieces;
  DeviceFlags device;
};

// One whole forward, or one per piece through a carried state.
void logits(const LogitsFlags& flags) {
  const std::vector<int32_t> tokens = parse_tokens(flags.tokens, "--tokens");
  if (tokens.empty()) throw UsageError("--tokens: no ids, want at least one");
  std::vector<int32_t> pieces;
  if (!flags.pieces.empty()) {
    pieces = parse_tokens(flags.pieces, "--pieces");
    const int64_t sum = std::accumulate(pieces.begin(), pieces.end(), int64_t{0});
    if (sum != static_cast<int64_t>(tokens.size()) ||
        std::find(pieces.begin(), pieces.end(), 0) != pieces.end()) {
      throw UsageError(
          fmt::format("--pieces: lengths add up to {}, want the {} tokens in pieces "
                      "of at least 1",
                      sum, tokens.size()));
    }
  }
  Context ctx = flags.device.context();
  const Model model = Model::load(ctx, flags.model);
  const Stack& stack = model.stack();
  SafetensorsWriter writer(
      flags.out,
      {{"logits", Shape{static_cast<int64_t>(tokens.size()), stack.config().vocab}, DType::kF32}});
  if (pieces.empty()) {
    const auto n = static_cast<int64_t>(tokens.size());
    const Tensor y = ctx.to_host(stack.forward(ctx, tokens, SequenceBatch::single(n)));
    writer.append(y.raw(), y.bytes());
  } else {
    State state = stack.make_state(ctx);
    State* states[] = {&state};
    std::span<const int32_t> rest = tokens;
    for (const int32_t n : pieces) {
      const Tensor y = ctx.to_host(stack.forward(ctx, rest.first(static_cast<size_t>(n)),
                                                 SequenceBatch::single(n, state.position()),
                                                 {.states = states}));
      writer.append(y.raw(), y.bytes());
      rest = rest.subspan(static_cast<size_t>(n));
    }
  }
  writer.commit();
}

}  // namespace

void add_logits_command(CLI::App& app) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* command = app.add_subcommand("logits", "Write the logits of every position to a file");
  command->add_option("--model", flags->model, "model directory")->required();
  command->add_option("--tokens", flags->tokens, "ids: 1,2,3 or - or @FILE")->required();
  command->add_option("--out", flags->out, "safetensors file, tensor `logits` (T, V) float32")
      ->required();
  command->add_option("--pieces", flags->pieces,
                      "feed the tokens in pieces of these lengths through a carried state");
  flags->device.add(*command);
  command->callback([flags] { logits(*flags); });
}

}  // namespace braid
