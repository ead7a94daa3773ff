// Test-time training at the sizes of its 125M models, and its layers beside full attention's.

#include <fmt/core.h>

#include "bench/ops.h"
#include "bench/timing.h"
#include "braid/model/stack_spec.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/lact/cases.h"
#include "braid/ops/lact/lact.h"
#include "braid/ops/lact/reference.h"
#include "braid/ops/ssd/decayed_scan.h"
#include "braid/ops/ttt/cases.h"
#include "braid/ops/ttt/reference.h"
#include "braid/ops/ttt/ttt.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;

TttInputs operands_of(const Inputs& in, bool mlp) {
  TttInputs out{.q = in[0],
                .k = in[1],
                .v = in[2],
                .lr = in[3],
                .rate = in[4],
                .norm_weight = in[5],
                .norm_bias = in[6],
                .w1 = in[7],
                .b1 = in[8]};
  if (mlp) out.w2 = in[9], out.b2 = in[10];
  return out;
}

// Learning rates and token rates as an untrained layer has them.
Inputs make_inputs(const TttOptions& o, int64_t T) {
  const int64_t H = o.heads, D = o.head_dim, F = o.hidden > 0 ? o.hidden : D;
  Inputs in = {random({T, H * D}, 1),     random({T, H * D}, 2),      random({T, H * D}, 3),
               random({T, H}, 4, 0.001f), random({o.mini_batch}, 5),  random({H, D}, 6, 0.1f),
               random({H, D}, 7, 0.1f),   random({H, D, F}, 8, 0.1f), random({H, F}, 9, 0.1f)};
  if (o.hidden > 0) {
    in.push_back(random({H, F, D}, 10, 0.1f));
    in.push_back(random({H, D}, 11, 0.1f));
  }
  const float lr = 0.5f / static_cast<float>(D);
  for (int64_t i = 0; i < T * H; ++i) in[3].f32()[i] += lr;
  for (int64_t i = 0; i < o.mini_batch; ++i) in[4].f32()[i] = 1.0f / static_cast<float>(i + 1);
  for (int64_t i = 0; i < H * D; ++i) in[5].f32()[i] += 1.0f;
  return in;
}

std::vector<double> reference_of(const TttOptions& o, const Inputs& in, int64_t start,
                                 const Tensor& initial, const Checked& c) {
  const auto part = [&](size_t i) { return rows(in[i], c.begin, c.count); };
  return reference::ttt(
             reference::Ttt<double>{.options = o,
                                    .start = start,
                                    .tokens = c.count,
                                    .q = part(0),
                                    .k = part(1),
                                    .v = part(2),
                                    .lr = part(3),
                                    .rate = all(in[4]),
                                    .norm_weight = all(in[5]),
                                    .norm_bias = all(in[6]),
                                    .w1 = all(in[7]),
                                    .b1 = all(in[8]),
                                    .w2 = o.hidden > 0 ? all(in[9]) : std::vector<double>{},
                                    .b2 = o.hidden > 0 ? all(in[10]) : std::vector<double>{},
                                    .initial = state_of(initial, c.sequence)})
      .y;
}

// Layers of one width over one prompt: what a mixer costs beside full attention.
void compare_layers(Context& ctx) {
  constexpr int64_t kWidth = 768, kTokens = 2048;
  constexpr int kRounds = 9;
  const std::vector<std::string> specs = {"attn:heads=12", "ttt_linear:heads=12",
                                          "ttt_mlp:heads=12"};
  const Tensor x = random({kTokens, kWidth}, 1);
  const SequenceBatch batch = SequenceBatch::single(kTokens);
  std::vector<std::unique_ptr<Sublayer>> layers;
  std::vector<std::function<void()>> bodies;
  for (const std::string& spec : specs) {
    const SublayerConfig config{.width = kWidth};
    layers.push_back(make_sublayer(parse_stack(spec)[0].branches[0], config));
    for (Parameter* p : layers.back()->parameters()) {
      initialize_parameter(ctx, *p, Rng(1), {.matrix_dtype = DType::kF32});
    }
    bodies.push_back([&ctx, &x, &batch, layer = layers.back().get()] {
      Stream stream(batch);
      State state(ctx.shared_api(), {layer->state_spec()});
      State* states[] = {&state};
      const LayerState view(states, 0, batch);
      layer->forward(ctx, x, stream, &view);
    });
  }
  const std::vector<double> seconds = interleaved_medians(bodies, kRounds);
  fmt::print("layers at width {}, prefill of {} tokens, f32\n", kWidth, kTokens);
  for (size_t i = 0; i < specs.size(); ++i) {
    fmt::print("  {:<34} {:>10.1f} us  {:>5.2f} x attention\n", specs[i], seconds[i] * 1e6,
               seconds[i] / seconds[0]);
  }
}

}  // namespace

void lact_cases(Context&, const Emit& emit) {
  for (const LactCase& a : lact_bench_cases()) {
    const bool decode = a.lengths[0] == 1;
    const int64_t start = decode ? 37 : 0;
    SequenceBatch batch;
    for (const int64_t length : a.lengths) batch.add(length, start);
    const LactOptions o = a.options;
    const int64_t T = batch.tokens(), S = batch.sequences(), H = o.heads, D = o.head_dim;
    const int64_t F = o.hidden;
    const Inputs inputs = {random({T, H * D}, 1),      random({T, H * D}, 2),
                           random({T, H * D}, 3),      random({T, 3 * H}, 4, 0.0001f),
                           random({H, D, F}, 5, 0.1f), random({H, F, D}, 6, 0.1f),
                           random({H, D, F}, 7, 0.1f)};
    const Tensor initial = decode ? random({S, H, lact_state_size(o)}, 20, 0.1f) : Tensor();
    emit({.size = a.name,
          .inputs = inputs,
          .run =
              [batch, o, initial](Context& c, const Inputs& in) {
                return lact(c, {in[0], in[1], in[2], in[3], {}, in[4], in[5], in[6]}, initial,
                            batch, o)
                    .y;
              },
          .reference = by_sequence(
              batch,
              [inputs, o, start, initial](const Checked& c) {
                const auto part = [&](size_t i) { return rows(inputs[i], c.begin, c.count); };
                return reference::lact(
                           reference::Lact<double>{.options = o,
                                                   .start = start,
                                                   .tokens = c.count,
                                                   .q = part(0),
                                                   .k = part(1),
                                                   .v = part(2),
                                                   .lr = part(3),
                                                   .momentum = {},
                                                   .w0 = all(inputs[4]),
                                                   .w1 = all(inputs[5]),
                                                   .w2 = all(inputs[6]),
                                                   .initial = state_of(initial, c.sequence)})
                    .y;
              }),
          .terms = kCheckedRows * D,
          .bytes = bytes_of({4 * T * H * D, 2 * S * H * lact_state_size(o)}),
          .flops = 18.0 * static_cast<double>(T * H * D * F)});
  }
}

void ttt_cases(Context& ctx, const Emit& emit) {
  for (const TttCase& a : ttt_bench_cases()) {
    // Decode is in the middle of a mini-batch, on states of its own.
    const bool decode = a.lengths[0] == 1;
    const int64_t start = decode ? 37 : 0;
    SequenceBatch batch;
    for (const int64_t length : a.lengths) batch.add(length, start);
    const TttOptions o = a.options;
    const int64_t T = batch.tokens(), S = batch.sequences(), H = o.heads, D = o.head_dim;
    Inputs inputs = make_inputs(o, T);
    const Tensor initial = decode ? random({S, H, ttt_state_size(o)}, 20, 0.1f) : Tensor();
    const auto weights = o.hidden > 0 ? 2 * D * o.hidden : D * D;
    emit({.size = a.name,
          .inputs = inputs,
          .run =
              [batch, o, initial, S](Context& c, const Inputs& in) {
                const TttInputs operands = operands_of(in, o.hidden > 0);
                if (!initial.defined()) return ttt(c, operands, {}, batch, o).y;
                // Again and again the same token: it writes what it wrote before.
                const std::vector<float*> states = state_rows(initial, S);
                return ttt_in_place(c, operands, states, batch, o);
              },
          .reference = by_sequence(batch,
                                   [inputs, o, start, initial](const Checked& c) {
                                     return reference_of(o, inputs, start, initial, c);
                                   }),
          .terms = kCheckedRows * D,
          .bytes = bytes_of({4 * T * H * D, (decode ? 1 : 2) * S * H * ttt_state_size(o)}),
          // Keys, queries and, over a mini-batch, the update; an MLP's gradient once more.
          .flops = 2.0 * static_cast<double>(T * H) *
                   static_cast<double>((decode ? 2 : 3) * weights + D * o.hidden),
          .differentiable = !decode});
  }
  compare_layers(ctx);
}

}  // namespace braid::bench
