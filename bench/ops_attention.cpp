// Softmax attention and its relatives: causal, but for the linformer over whole sequences, so that
// the beginning of a long sequence is checked alone. Traffic is each operand once.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/ops.h"
#include "braid/ops/attention/attention.h"
#include "braid/ops/attention/cases.h"
#include "braid/ops/attention/reference.h"
#include "braid/ops/favor_features/cases.h"
#include "braid/ops/favor_features/favor_features.h"
#include "braid/ops/favor_features/reference.h"
#include "braid/ops/gated_delta_rule/cases.h"
#include "braid/ops/gated_delta_rule/gated_delta_rule.h"
#include "braid/ops/gated_delta_rule/reference.h"
#include "braid/ops/latent_attention/cases.h"
#include "braid/ops/latent_attention/latent_attention.h"
#include "braid/ops/latent_attention/reference.h"
#include "braid/ops/linear_attention/cases.h"
#include "braid/ops/linear_attention/linear_attention.h"
#include "braid/ops/linear_attention/reference.h"
#include "braid/ops/linformer/cases.h"
#include "braid/ops/linformer/linformer.h"
#include "braid/ops/linformer/reference.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;
using Values = std::vector<double>;

double as_double(int64_t n) { return static_cast<double>(n); }

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

void latent_attention_cases(Context& ctx, const Emit& emit) {
  for (const LatentAttentionCase& a : kLatentAttentionBench) {
    const int64_t q = a.nope + a.rope, latent = a.latent + a.rope, expanded = a.nope + a.value;
    const LatentAttentionOptions options{
        .heads = a.heads, .nope = a.nope, .value = a.value, .scale = 1 / std::sqrt(as_double(q))};
    const SequenceBatch batch = SequenceBatch::single(a.tokens);
    const Inputs inputs = {
        random({a.tokens, a.heads * q}, 1), random({a.tokens, latent}, 2),
        random({a.heads * expanded, a.latent}, 3, 1 / std::sqrt(static_cast<float>(a.latent)))};
    const Weight kv_b = Weight::make(ctx, inputs[2], {.both_ways = true});
    const double pairs = as_double(a.tokens) * as_double(a.tokens + 1) / 2;
    emit(
        {.size = fmt::format("{} tokens, {} heads of {}+{}, latent {}", a.tokens, a.heads, a.nope,
                             a.rope, a.latent),
         .inputs = inputs,
         .run =
             [batch, options, kv_b](Context& inner, const Inputs& in) {
               return latent_attention(inner, in[0], in[1], kv_b, batch, options);
             },
         .reference =
             by_sequence(batch,
                         [inputs, options, a](const Checked& c) {
                           return reference::latent_attention(
                               rows(inputs[0], c.begin, c.count), rows(inputs[1], c.begin, c.count),
                               rows(inputs[2], 0, inputs[2].rows()), options, a.latent, a.rope);
                         }),
         .terms = a.latent + kCheckedRows,
         .bytes = bytes_of({a.tokens * (a.heads * (q + a.value) + latent), kv_b.rows() * a.latent}),
         .flops =
             2 * as_double(a.heads) *
             (pairs * as_double(latent + a.latent) + as_double(a.tokens * expanded * a.latent)),
         .differentiable = false});
  }
}

void favor_features_cases(Context&, const Emit& emit) {
  for (const FavorCase& a : favor_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const FavorOptions& o = a.options;
    const int64_t T = batch.tokens();
    const Inputs inputs = {random({T, o.heads * o.dim}, 1)};
    const Tensor w = random({o.features, o.dim}, 2);
    emit({.size = fmt::format("keys, {} tokens, {} heads, {} features of {}", T, o.heads,
                              o.features, o.dim),
          .inputs = inputs,
          .run = [batch, w, o](
                     Context& ctx,
                     const Inputs& in) { return favor_keys(ctx, in[0], w, {}, batch, o).features; },
          .reference = by_sequence(batch,
                                   [inputs, w, o](const Checked& c) {
                                     return reference::favor<double>(
                                                rows(inputs[0], c.begin, c.count), all(w), {},
                                                o.heads, o.dim, o.eps, true)
                                         .features;
                                   }),
          // The exponent is a sum of products of order sqrt(dim), and carries its error whole.
          .terms = o.dim * o.dim,
          .bytes = bytes_of({T * o.heads * (o.dim + o.features + 1), o.features * o.dim}),
          .flops = as_double(T * o.heads) * as_double(o.features * (2 * o.dim + 4) + 2 * o.dim)});
  }
}

void gated_delta_rule_cases(Context&, const Emit& emit) {
  for (const GatedDeltaCase& a : gated_delta_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t H = a.options.heads, G = a.options.key_heads;
    const int64_t K = a.options.key_dim, V = a.options.value_dim;
    const int64_t T = batch.tokens(), S = batch.sequences();
    // Keys of norm near 1; steps and decays below 1.
    const float of_key = 1.0f / std::sqrt(static_cast<float>(K));
    const Tensor decay = random({T, H}, 4), beta = random({T, H}, 5);
    for (int64_t i = 0; i < T * H; ++i) {
      decay.f32()[i] = -std::abs(decay.f32()[i]) / 16;
      beta.f32()[i] = 1.0f / (1.0f + std::exp(-beta.f32()[i]));
    }
    const Inputs inputs = {random({T, G * K}, 1, of_key),
                           random({T, G * K}, 2, of_key),
                           random({T, H * V}, 3),
                           decay,
                           beta,
                           initial_state(batch, {S, H, K, V})};
    emit({.size = a.name,
          .inputs = inputs,
          .run =
              [batch, options = a.options](Context& ctx, const Inputs& in) {
                return gated_delta_rule(ctx, {in[0], in[1], in[2], in[3], in[4]}, in[5], batch,
                                        options)
                    .y;
              },
          .reference = by_sequence(
              batch,
              [inputs, H, G, K, V](const Checked& c) {
                const auto part = [&](size_t i) { return rows(inputs[i], c.begin, c.count); };
                return reference::gated_delta_rule(reference::GatedDelta<double>{
                                                       .tokens = c.count,
                                                       .heads = H,
                                                       .key_heads = G,
                                                       .key_dim = K,
                                                       .value_dim = V,
                                                       .q = part(0),
                                                       .k = part(1),
                                                       .v = part(2),
                                                       .log_decay = part(3),
                                                       .beta = part(4),
                                                       .initial = state_of(inputs[5], c.sequence)})
                    .y;
              }),
          .terms = kCheckedRows + K,
          .bytes = bytes_of({T * (2 * G * K + 2 * H * V + 2 * H), 2 * S * H * K * V}),
          .flops = 7 * as_double(T * H * K * V)});
  }
}

void linear_attention_cases(Context&, const Emit& emit) {
  for (const LinearAttentionCase& a : linear_attention_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const int64_t H = a.options.heads, K = a.options.key_dim, V = a.options.value_dim;
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

void linformer_cases(Context&, const Emit& emit) {
  for (const LinformerCase& a : linformer_bench_cases()) {
    const SequenceBatch batch = packed(a.lengths);
    const LinformerOptions options{
        .heads = a.heads, .kv_heads = a.kv_heads, .rank = a.rank, .block = a.block};
    const int64_t T = batch.tokens(), R = a.block > 0 ? a.block : T;
    const int64_t q = a.heads * a.head_dim, k = a.kv_heads * a.head_dim;
    const int64_t v = a.kv_heads * a.value_dim, y = a.heads * a.value_dim;
    const float small = 1.0f / std::sqrt(static_cast<float>(R));
    const Inputs inputs = {random({T, q}, 1), random({T, k}, 2), random({T, v}, 3),
                           random({R, a.rank}, 4, small), random({R, a.rank}, 5, small)};
    const bool causal = a.block > 0;
    // Summaries that a query sees on average, and tokens of its own block and the one before.
    const double seen = causal ? as_double(a.rank) * as_double(T) / as_double(2 * a.block) +
                                     as_double(3 * a.block) / 2
                               : as_double(a.rank);
    emit({.size = fmt::format("{} tokens, {} heads of {}, rank {}, block {}", T, a.heads,
                              a.head_dim, a.rank, a.block),
          .inputs = inputs,
          .run =
              [batch, options, causal, block = a.block](Context& ctx, const Inputs& in) {
                const Tensor sk = linformer_summaries(ctx, in[1], in[3], batch, block);
                const Tensor sv = linformer_summaries(ctx, in[2], in[4], batch, block);
                return linformer_attention(ctx, in[0], causal ? in[1] : Tensor(),
                                           causal ? in[2] : Tensor(), sk, sv, batch, options);
              },
          .reference =
              [inputs, a, T, k, v, causal] {
                const int64_t count = std::min(kCheckedRows, T), read = causal ? count : T;
                const auto summaries = [&](size_t x, size_t e, int64_t width) {
                  return reference::linformer_summaries(read, width, a.rank, a.block,
                                                        rows(inputs[x], 0, read), all(inputs[e]));
                };
                return reference::linformer_attention(
                    count, {a.heads, a.kv_heads, a.head_dim, a.value_dim, a.rank, a.block},
                    rows(inputs[0], 0, count), rows(inputs[1], 0, count), rows(inputs[2], 0, count),
                    summaries(1, 3, k), summaries(2, 4, v));
              },
          .terms = R + a.head_dim + kCheckedRows,
          .bytes = bytes_of({T * (q + k + v + y), 2 * R * a.rank}),
          .flops = 2 * as_double(T) *
                   (as_double(a.rank * (k + v)) +
                    seen * as_double(a.heads * (a.head_dim + a.value_dim)))});
  }
}

}  // namespace braid::bench
