// Ops along the sequence. All are causal, so the beginning of a long sequence is checked alone.
// Traffic is each operand, and a state's two ends, once.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/ops.h"
#include "braid/ops/attention/attention.h"
#include "braid/ops/attention/cases.h"
#include "braid/ops/attention/reference.h"
#include "braid/ops/linear_attention/cases.h"
#include "braid/ops/linear_attention/linear_attention.h"
#include "braid/ops/linear_attention/reference.h"
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

// The outputs of all checked rows, from what `of` makes of each sequence's beginning.
std::function<Values()> by_sequence(const SequenceBatch& batch,
                                    std::function<Values(const Checked&)> of) {
  return [checked = checked_rows(batch), of = std::move(of)] {
    Values out;
    for (const Checked& part : checked) {
      const Values y = of(part);
      out.insert(out.end(), y.begin(), y.end());
    }
    return out;
  };
}

double as_double(int64_t n) { return static_cast<double>(n); }

// A state to start from, for decode; a long piece starts from nothing.
Tensor initial_state(const SequenceBatch& batch, Shape shape) {
  return batch.length(0) == 1 ? random(shape, 20) : Tensor();
}
Values state_of(const Tensor& initial, int64_t sequence) {
  return initial.defined() ? rows(initial, sequence, 1) : Values{};
}

}  // namespace

void attention_cases(Context&, const Emit& emit) {
  for (const AttentionCase& a : kAttentionBench) {
    const AttentionOptions options{.heads = a.heads, .kv_heads = a.kv_heads, .window = a.window};
    const SequenceBatch batch = SequenceBatch::single(a.tokens);
    const int64_t q = a.heads * a.head_dim, k = a.kv_heads * a.head_dim;
    const int64_t v = a.kv_heads * a.value_dim, y = a.heads * a.value_dim;
    const Inputs inputs = {random({a.tokens, q}, 1), random({a.tokens, k}, 2),
                           random({a.tokens, v}, 3)};
    double pairs = 0;
    for (int64_t i = 1; i <= a.tokens; ++i) {
      pairs += as_double(a.window > 0 ? std::min(i, a.window) : i);
    }
    emit({.size = fmt::format("{} tokens, {}/{} heads of {}, window {}", a.tokens, a.heads,
                              a.kv_heads, a.head_dim, a.window),
          .inputs = inputs,
          .run =
              [batch, options](Context& ctx, const Inputs& in) {
                return attention(ctx, in[0], in[1], in[2], batch, options);
              },
          .reference = by_sequence(batch,
                                   [inputs, options, a](const Checked& c) {
                                     return reference::attention(rows(inputs[0], c.begin, c.count),
                                                                 rows(inputs[1], c.begin, c.count),
                                                                 rows(inputs[2], c.begin, c.count),
                                                                 options, a.head_dim, a.value_dim);
                                   }),
          .terms = a.head_dim + kCheckedRows,
          .bytes = bytes_of({a.tokens * (q + k + v + y)}),
          .flops = 2 * pairs * as_double(a.heads * (a.head_dim + a.value_dim))});
  }
}

void linear_attention_cases(Context&, const Emit& emit) {
  for (const LinearAttentionCase& a : linear_attention_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const auto [H, K, V, chunk] = a.options;
    const int64_t T = batch.tokens(), S = batch.sequences();
    Tensor decay;
    if (a.decay != DecayKind::kNone) {
      decay = a.decay == DecayKind::kConstant ? random({H}, 4) : random({T, H}, 4);
      for (int64_t i = 0; i < decay.count(); ++i) decay.f32()[i] = -std::abs(decay.f32()[i]) / 16;
    }
    const Inputs inputs = {random({T, H * K}, 1), random({T, H * K}, 2, 0.25f),
                           random({T, H * V}, 3), decay, initial_state(batch, {S, H, V, K})};
    emit(
        {.size = a.name,
         .inputs = inputs,
         .run =
             [batch, options = a.options](Context& ctx, const Inputs& in) {
               return linear_attention(ctx, {in[0], in[1], in[2], in[3]}, in[4], batch, options).y;
             },
         .reference = by_sequence(
             batch,
             [inputs, H, K, V, per_token = decay.defined() && decay.rank() == 2](const Checked& c) {
               Values log_decay;
               if (per_token) log_decay = rows(inputs[3], c.begin, c.count);
               // One token of constant decay would be taken for a decay a token, which it equals.
               if (!per_token && inputs[3].defined()) log_decay = all(inputs[3]);
               return reference::linear_attention(reference::LinearAttention<double>{
                                                      .tokens = c.count,
                                                      .heads = H,
                                                      .key_dim = K,
                                                      .value_dim = V,
                                                      .q = rows(inputs[0], c.begin, c.count),
                                                      .k = rows(inputs[1], c.begin, c.count),
                                                      .v = rows(inputs[2], c.begin, c.count),
                                                      .log_decay = log_decay,
                                                      .initial = state_of(inputs[4], c.sequence)})
                   .y;
             }),
         .terms = kCheckedRows + K,
         .bytes = bytes_of({T * H * (2 * K + 2 * V), 2 * S * H * K * V}),
         .flops = 5 * as_double(T * H * K * V)});
  }
}

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
          .flops = 5 * as_double(T * H * P * N)});
  }
}

}  // namespace braid::bench
