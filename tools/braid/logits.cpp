#include <numeric>

#include "braid/model/safetensors.h"
#include "tools/braid/commands.h"
#include "tools/braid/experts.h"

namespace braid {
namespace {

struct LogitsFlags {
  std::string model, tokens, out, pieces;
  ExpertFlags experts;
  DeviceFlags device;
};

struct LogitsInput {
  std::vector<int32_t> tokens, pieces;  // pieces empty: one whole forward, without a state

  explicit LogitsInput(const LogitsFlags& flags) : tokens(parse_tokens(flags.tokens, "--tokens")) {
    if (tokens.empty()) throw UsageError("--tokens: no ids, want at least one");
    if (flags.pieces.empty()) return;
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
  int64_t steps() const { return pieces.empty() ? 1 : std::ssize(pieces); }
};

// One whole forward, or one per piece through a carried state; `done` is called after each.
void each_logits(Context& ctx, const SharedModel& model, const LogitsInput& input,
                 const std::function<void(const Tensor& y)>& done) {
  const Stack& stack = model.stack();
  std::optional<State> state;
  if (!input.pieces.empty()) state.emplace(stack.make_state(ctx));
  std::span<const int32_t> rest = input.tokens;
  for (int64_t step = 0; step < input.steps(); ++step) {
    const auto n =
        state ? static_cast<size_t>(input.pieces[static_cast<size_t>(step)]) : rest.size();
    State* states[] = {state ? &*state : nullptr};
    ForwardOptions options{.expert_host = model.host.get()};
    if (state) options.states = states;
    done(ctx.to_host(stack.forward(
        ctx, rest.first(n),
        SequenceBatch::single(static_cast<int64_t>(n), state ? state->position() : 0), options)));
    rest = rest.subspan(n);
  }
}

// The first rank reads the tokens; the others serve its rows.
void shared_logits(Context& ctx, const LogitsFlags& flags, const SharedModel& model,
                   const std::optional<LogitsInput>& input) {
  int64_t steps = input ? input->steps() : 0;
  model.transport->all_reduce_sum(std::span(&steps, 1));
  std::vector<Tensor> rows;
  if (input) {
    each_logits(ctx, model, *input, [&](const Tensor& y) {
      rows.push_back(y);
      model.host->end_step(ctx);
    });
  }
  for (int64_t step = 0; !input && step < steps; ++step) {
    model.host->idle_pass(ctx);
    model.host->end_step(ctx);
  }
  model.finish(ctx);
  model.print_report();
  if (!input) return;
  const auto count = static_cast<int64_t>(input->tokens.size());
  SafetensorsWriter writer(flags.out,
                           {{"logits", Shape{count, model.stack().config().vocab}, DType::kF32}});
  for (const Tensor& y : rows) writer.append(y.raw(), y.bytes());
  writer.commit();
}

void logits(const LogitsFlags& flags) {
  run_ranks(flags.experts, flags.device, [&](Context& ctx, Transport* transport) {
    std::optional<LogitsInput> input;
    if (transport == nullptr || transport->rank() == 0) input.emplace(flags);
    const SharedModel model = load_shared(ctx, transport, flags.experts, flags.model);
    if (transport != nullptr) return shared_logits(ctx, flags, model, input);
    const auto count = static_cast<int64_t>(input->tokens.size());
    SafetensorsWriter writer(flags.out,
                             {{"logits", Shape{count, model.stack().config().vocab}, DType::kF32}});
    each_logits(ctx, model, *input, [&](const Tensor& y) { writer.append(y.raw(), y.bytes()); });
    writer.commit();
  });
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
  flags->experts.add(*command);
  flags->device.add(*command);
  command->callback([flags] { logits(*flags); });
}

}  // namespace braid
