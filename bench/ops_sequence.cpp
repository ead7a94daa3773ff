// Ops along the sequence. All are causal, so the beginning of a long sequence is checked alone.
// Traffic is each operand, and a state's two ends, once.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/ops.h"
#include "braid/ops/long_conv/cases.h"
#include "braid/ops/long_conv/long_conv.h"
#include "braid/ops/long_conv/reference.h"
#include "braid/ops/selective_scan/cases.h"
#include "braid/ops/selective_scan/reference.h"
#include "braid/ops/selective_scan/selective_scan.h"
#include "braid/ops/short_conv/cases.h"
#include "braid/ops/short_conv/reference.h"
#include "braid/ops/short_conv/short_conv.h"
#include "braid/ops/ssd/cases.h"
#include "braid/ops/ssd/reference.h"
#include "braid/ops/ssd/ssd.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;
using Values = std::vector<double>;

double as_double(int64_t n) { return static_cast<double>(n); }

}  // namespace

void long_conv_cases(Context& ctx, const Emit& emit) {
  for (const LongConvCase& a : long_conv_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t T = batch.tokens(), C = a.channels;
    const Inputs inputs = {random({T, C}, 1), random({a.taps, C}, 2, 0.05f), random({C}, 3)};
    // Three real transforms of twice the length, which a causal convolution takes at least.
    const double n = 2 * as_double(batch.length(0));
    emit({.size = fmt::format("{}, {} channels, {} taps", describe(batch), C, a.taps),
          .inputs = inputs,
          // Without a tape as inference does it, the filter transformed beforehand.
          .run =
              [batch, filter = LongConvFilter::make(ctx, inputs[1], inputs[2])](Context& c,
                                                                                const Inputs& in) {
                return c.tape() != nullptr ? long_conv(c, in[0], in[1], in[2], batch)
                                           : long_conv(c, in[0], filter, batch);
              },
          .reference = by_sequence(batch,
                                   [inputs, C](const Checked& c) {
                                     return reference::long_conv(c.count, C,
                                                                 rows(inputs[0], c.begin, c.count),
                                                                 all(inputs[1]), all(inputs[2]));
                                   }),
          .terms = kCheckedRows,
          .bytes = bytes_of({2 * T * C, std::min(a.taps, batch.length(0)) * C}),
          .flops = as_double(batch.sequences() * C) * 3 * 2.5 * n * std::log2(n)});
  }
}

void selective_scan_cases(Context&, const Emit& emit) {
  for (const SelectiveScanCase& a : selective_scan_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t T = batch.tokens(), E = a.channels, N = a.state, S = batch.sequences();
    const Inputs inputs = {random({T, E}, 1), random({T, E}, 2), random({T, N}, 3),
                           random({T, N}, 4), random({E}, 5),    random({E, N}, 6, 0.3f),
                           random({E}, 7),    random({T, E}, 8), initial_state(batch, {S, N, E})};
    emit({.size = fmt::format("{}, {} x {}", a.name, E, N),
          .inputs = inputs,
          .run =
              [batch, chunk = a.chunk](Context& ctx, const Inputs& in) {
                return selective_scan(ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]},
                                      in[8], batch, {.chunk = chunk})
                    .y;
              },
          .reference = by_sequence(batch,
                                   [inputs, E, N](const Checked& c) {
                                     return reference::selective_scan(
                                                reference::SelectiveScan<double>{
                                                    .tokens = c.count,
                                                    .channels = E,
                                                    .state = N,
                                                    .x = rows(inputs[0], c.begin, c.count),
                                                    .dt_raw = rows(inputs[1], c.begin, c.count),
                                                    .b = rows(inputs[2], c.begin, c.count),
                                                    .c = rows(inputs[3], c.begin, c.count),
                                                    .dt_bias = all(inputs[4]),
                                                    .a_log = all(inputs[5]),
                                                    .d = all(inputs[6]),
                                                    .z = rows(inputs[7], c.begin, c.count),
                                                    .initial = state_of(inputs[8], c.sequence)})
                                         .y;
                                   }),
          .terms = kCheckedRows + N,
          .bytes = bytes_of({4 * T * E, 2 * T * N, E * N, 2 * S * E * N}),
          .flops = as_double(T * E) * (7 * as_double(N) + 8)});
  }
}

void short_conv_cases(Context&, const Emit& emit) {
  for (const ShortConvCase& a : short_conv_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t T = batch.tokens(), C = a.channels, W = a.width, S = batch.sequences();
    const Inputs inputs = {random({T, C}, 1), random({C, W}, 2), random({C}, 3),
                           initial_state(batch, {S, W - 1, C})};
    emit({.size = fmt::format("{}, {} channels, {} taps", describe(batch), C, W),
          .inputs = inputs,
          .run =
              [batch](Context& ctx, const Inputs& in) {
                return short_conv(ctx, in[0], in[1], in[2], in[3], batch, {.silu = true}).y;
              },
          .reference = by_sequence(batch,
                                   [inputs, C, W](const Checked& c) {
                                     Values state = state_of(inputs[3], c.sequence);
                                     return reference::short_conv(
                                         c.count, C, W, true, rows(inputs[0], c.begin, c.count),
                                         all(inputs[1]), all(inputs[2]), state);
                                   }),
          .terms = W,
          .bytes = bytes_of({2 * T * C, C * W, 2 * S * (W - 1) * C}),
          .flops = as_double(T * C) * (2 * as_double(W) + 4)});
  }
}

void ssd_cases(Context&, const Emit& emit) {
  for (const SsdCase& a : ssd_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const SsdOptions& o = a.options;
    const int64_t T = batch.tokens(), S = batch.sequences();
    const int64_t H = o.heads, P = o.head_dim, G = o.groups, N = o.state;
    const Inputs inputs = {random({T, H * P}, 1), random({T, G * N}, 2),
                           random({T, G * N}, 3), random({T, H}, 4),
                           random({H}, 5),        random({H}, 6, 0.3f),
                           random({H}, 7),        initial_state(batch, {S, H, P, N})};
    emit({.size = a.name,
          .inputs = inputs,
          .run =
              [batch, o](Context& ctx, const Inputs& in) {
                return ssd(ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6]}, in[7], batch, o)
                    .y;
              },
          .reference = by_sequence(batch,
                                   [inputs, o](const Checked& c) {
                                     return reference::ssd(
                                                reference::Ssd<double>{
                                                    .tokens = c.count,
                                                    .heads = o.heads,
                                                    .head_dim = o.head_dim,
                                                    .groups = o.groups,
                                                    .state = o.state,
                                                    .dt_min = o.dt_min,
                                                    .dt_max = o.dt_max,
                                                    .x = rows(inputs[0], c.begin, c.count),
                                                    .b = rows(inputs[1], c.begin, c.count),
                                                    .c = rows(inputs[2], c.begin, c.count),
                                                    .dt_raw = rows(inputs[3], c.begin, c.count),
                                                    .dt_bias = all(inputs[4]),
                                                    .a_log = all(inputs[5]),
                                                    .d = all(inputs[6]),
                                                    .initial = state_of(inputs[7], c.sequence)})
                                         .y;
                                   }),
          .terms = kCheckedRows + N,
          .bytes = bytes_of({2 * T * H * P, 2 * T * G * N, T * H, 2 * S * H * P * N}),
          .flops = 5 * as_double(T * H * P * N),
          .token_loop = true});
  }
}

}  // namespace braid::bench
