#include "bench/model_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "bench/timing.h"
#include "braid/model/stack_spec.h"
#include "braid/ops/adamw/adamw.h"
#include "braid/ops/cross_entropy/cross_entropy.h"

namespace braid::bench {
namespace {

// Median of the run times of `body`, after one run that is not counted.
double median_seconds(int runs, const std::function<void()>& body) {
  return interleaved_medians(std::span(&body, 1), runs)[0];
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed) {
  const Rng rng(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(
        static_cast<int32_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab))));
  }
  return tokens;
}

// Bytes of fixed state that a step of one sequence reads and writes.
double state_traffic(const Stack& stack) {
  int64_t bytes = 0;
  for (const StateSpec& spec : stack.state_specs()) {
    for (const SlotSpec& slot : spec) {
      if (slot.kind != SlotKind::kFixed) continue;
      bytes += slot.shape.count() * static_cast<int64_t>(size_of(slot.dtype));
    }
  }
  return 2.0 * static_cast<double>(bytes);
}

// Bytes of weights that a step of so many sequences reads: an embedding that is not the head gives
// one row a sequence, and of experts those that somebody chose, where choices are even.
double weight_traffic(const Stack& stack, int64_t sequences) {
  const ModelConfig& config = stack.config();
  double bytes = 0;
  for (const auto& [name, parameter] : stack.parameters()) {
    if (!config.tied && name == "embedding.weight") continue;
    const bool half = parameter->matrix && config.dtype == DType::kBF16;
    const double read = 1 - std::pow(1 - parameter->active, static_cast<double>(sequences));
    bytes += read * static_cast<double>(parameter->shape.count()) * (half ? 2 : 4);
  }
  return bytes;
}

void bench_prefill(Context& ctx, const Stack& stack, const Ceilings& ceilings, int64_t prompt) {
  const auto tokens = random_tokens(prompt, stack.config().vocab, 1);
  const double seconds = median_seconds(3, [&] {
    State state = stack.make_state(ctx);
    State* states[] = {&state};
    stack.forward(ctx, tokens, SequenceBatch::single(prompt),
                  {.states = states, .rows = std::vector<int64_t>{prompt - 1}});
  });
  const double head = 2.0 * static_cast<double>(stack.config().vocab * stack.config().width);
  const double flops = (stack.matmul_flops() - head) * static_cast<double>(prompt) + head;
  const bool bf16 = stack.config().dtype == DType::kBF16;
  const double peak =
      bf16 ? ceilings.bf16_flops_per_second / 1e9 : ceilings.f32_flops_per_second / 1e9;
  fmt::print(
      "  prefill {:5} tokens    {:9.1f} tokens/s   {:7.1f} GFLOP/s in matrices = {:5.1f}% of "
      "{} GEMM peak {:.0f}\n",
      prompt, static_cast<double>(prompt) / seconds, flops / seconds / 1e9,
      100 * flops / seconds / 1e9 / peak, bf16 ? "bf16" : "f32", peak);
}

// Each step is followed by a reading of memory: the bandwidth that a shared machine grants changes
// from one second to the next, so the floor must be of the same moment.
void bench_decode(Context& ctx, const Stack& stack, int64_t sequences) {
  std::vector<State> states;
  for (int64_t s = 0; s < sequences; ++s) states.push_back(stack.make_state(ctx));
  std::vector<State*> pointers;
  for (State& state : states) pointers.push_back(&state);
  int64_t step = 0;
  const auto tokens = random_tokens(sequences, stack.config().vocab, 2);
  CeilingProbe read(ctx, CeilingProbe::kRead);
  const std::vector<std::function<void()>> bodies = {[&] {
                                                       SequenceBatch batch;
                                                       for (int64_t s = 0; s < sequences; ++s)
                                                         batch.add(1, step);
                                                       stack.forward(ctx, tokens, batch,
                                                                     {.states = pointers});
                                                       ++step;
                                                     },
                                                     [&] { read.run(); }};
  const std::vector<double> medians = interleaved_medians(bodies, 40);
  const double seconds = medians[0], bandwidth = read.work() / medians[1];
  const double bytes =
      weight_traffic(stack, sequences) + static_cast<double>(sequences) * state_traffic(stack);
  fmt::print(
      "  decode  {:5} sequences {:9.1f} tokens/s   {:7.1f} GB/s over weights and state = "
      "{:5.1f}% of read bandwidth {:.1f}\n",
      sequences, static_cast<double>(sequences) / seconds, bytes / seconds / 1e9,
      100 * bytes / seconds / bandwidth, bandwidth / 1e9);
}

}  // namespace

void bench_inference(Context& ctx, const Stack& stack, const Ceilings& ceilings, int64_t prompt) {
  fmt::print(
      "  {}\n  {:.1f}M parameters, {:.1f} MB of weights, {:.1f} MB of fixed state traffic a "
      "token\n",
      print_stack(stack.config().sublayers), static_cast<double>(stack.parameter_count()) / 1e6,
      static_cast<double>(stack.weight_bytes()) / 1e6, state_traffic(stack) / 1e6);
  bench_prefill(ctx, stack, ceilings, prompt);
  bench_decode(ctx, stack, 1);
  bench_decode(ctx, stack, 16);
}

void bench_inference(Context& ctx, const Preset& preset, const Ceilings& ceilings) {
  ModelConfig config = preset_config(preset);
  config.dtype = DType::kBF16;
  Stack stack(config, {.matrix_dtype = DType::kBF16});
  for (const auto& [name, parameter] : stack.parameters()) {
    // Quick to draw, and none is zero, as some start.
    if (parameter->matrix) parameter->init = projection_init(parameter->shape[1]);
  }
  stack.initialize(ctx, Rng(1));
  fmt::print("{} (random weights, bf16)\n", preset.name);
  bench_inference(ctx, stack, ceilings);
}

void bench_training(Context& ctx, const std::string& spec, int64_t width, int64_t vocab,
                    const Ceilings& ceilings, int64_t tokens) {
  ModelConfig config;
  config.width = width;
  config.vocab = vocab;
  config.tied = true;
  config.sublayers = parse_stack(spec);
  Stack stack(config, {.trainable = true});
  stack.initialize(ctx, Rng(1));
  Tape::Sinks sinks;
  for (const auto& [name, p] : stack.parameters()) {
    sinks[p->value.grad_id()] = ctx.zeros(p->shape);
  }
  SequenceBatch batch;
  for (int64_t at = 0; at < tokens; at += 512) batch.add(std::min<int64_t>(512, tokens - at));
  const auto ids = random_tokens(tokens, vocab, 3), targets = random_tokens(tokens, vocab, 4);
  const double seconds = median_seconds(3, [&] {
    Tape tape(&sinks);
    Context taped = ctx.with_tape(&tape);
    const Tensor logits = stack.forward(taped, ids, batch);
    const Tensor loss = softmax_cross_entropy(taped, logits, targets).loss;
    Tensor one = ctx.empty({1});
    *one.f32() = 1.0f;
    tape.backward(ctx, {loss}, {one});
    stack.repack(ctx);
  });
  const double flops = 3.0 * stack.matmul_flops() * static_cast<double>(tokens);
  fmt::print(
      "training step of {} at width {}, vocabulary {}, {} tokens (forward, backward, repack)\n"
      "  {:9.1f} tokens/s   {:7.1f} GFLOP/s in matrices = {:5.1f}% of f32 GEMM peak {:.0f}\n",
      spec, width, vocab, tokens, static_cast<double>(tokens) / seconds, flops / seconds / 1e9,
      100 * flops / seconds / ceilings.f32_flops_per_second, ceilings.f32_flops_per_second / 1e9);
}

}  // namespace braid::bench
