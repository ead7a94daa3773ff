// The recurrence of RWKV-7 and what stands around it, at the sizes of its 0.1B model.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/ops.h"
#include "braid/ops/token_shift/cases.h"
#include "braid/ops/token_shift/reference.h"
#include "braid/ops/token_shift/token_shift.h"
#include "braid/ops/wkv7/cases.h"
#include "braid/ops/wkv7/reference.h"
#include "braid/ops/wkv7/wkv7.h"
#include "braid/ops/wkv7_inputs/cases.h"
#include "braid/ops/wkv7_inputs/reference.h"
#include "braid/ops/wkv7_inputs/wkv7_inputs.h"
#include "braid/ops/wkv7_output/cases.h"
#include "braid/ops/wkv7_output/reference.h"
#include "braid/ops/wkv7_output/wkv7_output.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;
using Values = std::vector<double>;

double as_double(int64_t n) { return static_cast<double>(n); }

// Inputs as the mixer makes them, so that the state stays bounded: decays, and a and b of one
// direction of length one at most.
Inputs recurrence_inputs(Context& ctx, int64_t T, int64_t H, int64_t P, uint64_t seed) {
  const int64_t E = H * P;
  const Wkv7Raw raw{.decay = random({T, E}, seed),
                    .k = random({T, E}, seed + 1),
                    .rate = random({T, E}, seed + 2),
                    .k_k = random({E}, seed + 3),
                    .k_a = random({E}, seed + 4),
                    .v = {},
                    .v_first = {},
                    .v_mix = {}};
  const Wkv7Prepared prepared = wkv7_inputs(ctx, raw, H);
  return {random({T, E}, seed + 5), prepared.log_decay, prepared.k,
          random({T, E}, seed + 6), prepared.a,         prepared.b};
}

}  // namespace

void token_shift_cases(Context&, const Emit& emit) {
  for (const TokenShiftCase& a : token_shift_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t T = batch.tokens(), D = a.width, M = a.outputs, S = batch.sequences();
    Inputs inputs = {random({T, D}, 1), initial_state(batch, {S, D})};
    for (int64_t m = 0; m < M; ++m) inputs.push_back(random({D}, 2 + static_cast<uint64_t>(m)));
    emit({.size = fmt::format("{}, width {}, {} outputs", describe(batch), D, M),
          .inputs = inputs,
          .run =
              [batch](Context& ctx, const Inputs& in) {
                return token_shift(ctx, in[0], std::span(in).subspan(2), in[1], batch).y;
              },
          .reference = by_sequence(batch,
                                   [inputs](const Checked& c) {
                                     return reference::token_shift(
                                         rows(inputs[0], c.begin, c.count), all(inputs[2]),
                                         state_of(inputs[1], c.sequence));
                                   }),
          .bytes = bytes_of({T * D * (1 + M), M * D, 2 * S * D}),
          .flops = as_double(T * D) * (1 + 2 * as_double(M))});
  }
}

void wkv7_cases(Context& ctx, const Emit& emit) {
  for (const Wkv7Case& a : wkv7_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t T = batch.tokens(), H = a.heads, P = a.head_dim, S = batch.sequences();
    Inputs inputs = recurrence_inputs(ctx, T, H, P, 1);
    inputs.push_back(initial_state(batch, {S, H, P, P}));
    emit({.size = fmt::format("{}, {} heads of {}", a.name, H, P),
          .inputs = inputs,
          .run =
              [batch, H](Context& c, const Inputs& in) {
                return wkv7(c, {in[0], in[1], in[2], in[3], in[4], in[5]}, in[6], H, batch).y;
              },
          .reference = by_sequence(
              batch,
              [inputs, H, P](const Checked& c) {
                const auto part = [&](size_t i) { return rows(inputs[i], c.begin, c.count); };
                return reference::wkv7(
                           reference::Wkv7<double>{.tokens = c.count,
                                                   .heads = H,
                                                   .head_dim = P,
                                                   .r = part(0),
                                                   .log_decay = part(1),
                                                   .k = part(2),
                                                   .v = part(3),
                                                   .a = part(4),
                                                   .b = part(5),
                                                   .state = state_of(inputs[6], c.sequence)})
                    .y;
              }),
          .terms = kCheckedRows + P,
          .bytes = bytes_of({7 * T * H * P, 2 * S * H * P * P}),
          .flops = 9 * as_double(T * H * P * P),
          .token_loop = true});
  }
}

void wkv7_inputs_cases(Context&, const Emit& emit) {
  for (const Wkv7InputsCase& a : wkv7_inputs_bench_cases()) {
    const int64_t N = a.rows, E = a.heads * a.head_dim;
    const Shape wide{N, E};
    const Inputs inputs = {random(wide, 1), random(wide, 2), random(wide, 3), random({E}, 4),
                           random({E}, 5),  random(wide, 6), random(wide, 7), random(wide, 8)};
    emit({.size = fmt::format("{} x {} heads of {}", N, a.heads, a.head_dim),
          .inputs = inputs,
          .run =
              [heads = a.heads](Context& ctx, const Inputs& in) {
                const Wkv7Prepared out = wkv7_inputs(
                    ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]}, heads);
                return std::vector<Tensor>{out.k, out.log_decay, out.a, out.b, out.v};
              },
          .reference =
              [inputs, P = a.head_dim, count = std::min<int64_t>(8, N)] {
                const auto part = [&](size_t i) { return rows(inputs[i], 0, count); };
                return reference::wkv7_inputs(reference::Wkv7Raw<double>{.decay = part(0),
                                                                         .k = part(1),
                                                                         .rate = part(2),
                                                                         .k_k = all(inputs[3]),
                                                                         .k_a = all(inputs[4]),
                                                                         .v = part(5),
                                                                         .v_first = part(6),
                                                                         .v_mix = part(7)},
                                              P)
                    .k;
              },
          .bytes = bytes_of({11 * N * E, 2 * E}),
          .flops = 22.0 * as_double(N * E)});
  }
}

void wkv7_output_cases(Context&, const Emit& emit) {
  constexpr float kEps = 64e-5f;
  for (const Wkv7OutputCase& a : wkv7_output_bench_cases()) {
    const int64_t N = a.rows, E = a.heads * a.head_dim;
    const Shape wide{N, E};
    const Inputs inputs = {random(wide, 1), random(wide, 2), random(wide, 3),
                           random(wide, 4), random(wide, 5), random({a.heads, a.head_dim}, 6),
                           random({E}, 7),  random({E}, 8)};
    emit({.size = fmt::format("{} x {} heads of {}", N, a.heads, a.head_dim),
          .inputs = inputs,
          .run =
              [heads = a.heads](Context& ctx, const Inputs& in) {
                return wkv7_output(ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]},
                                   heads, kEps);
              },
          .reference =
              [inputs, P = a.head_dim, count = std::min<int64_t>(8, N)] {
                const auto part = [&](size_t i) { return rows(inputs[i], 0, count); };
                return reference::wkv7_output(
                    reference::Wkv7Reading<double>{.y = part(0),
                                                   .r = part(1),
                                                   .k = part(2),
                                                   .v = part(3),
                                                   .gate = part(4),
                                                   .r_k = all(inputs[5]),
                                                   .weight = all(inputs[6]),
                                                   .bias = all(inputs[7])},
                    P, kEps);
              },
          .terms = a.head_dim,
          .bytes = bytes_of({6 * N * E, 3 * E}),
          .flops = 13.0 * as_double(N * E)});
  }
}

}  // namespace braid::bench
