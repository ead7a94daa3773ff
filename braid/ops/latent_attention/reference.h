#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "braid/ops/attention/reference.h"
#include "braid/ops/latent_attention/latent_attention.h"

namespace braid::reference {

/// One sequence, the definition: keys and values of every head are expanded. q (T, H * (P + R)),
/// latent (T, C + R), kv_b (H * (P + V), C).
template <class T>
std::vector<T> latent_attention(const std::vector<T>& q, const std::vector<T>& latent,
                                const std::vector<T>& kv_b, const LatentAttentionOptions& o,
                                int64_t C, int64_t R) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  const auto tokens = static_cast<int64_t>(latent.size()) / (C + R);
  const int64_t H = o.heads, P = o.nope, V = o.value;
  std::vector<T> k(at(tokens * H * (P + R))), v(at(tokens * H * V));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < P + V; ++i) {
        T sum{};
        for (int64_t c = 0; c < C; ++c) {
          sum += kv_b[at((h * (P + V) + i) * C + c)] * latent[at(t * (C + R) + c)];
        }
        (i < P ? k[at((t * H + h) * (P + R) + i)] : v[at((t * H + h) * V + i - P)]) = sum;
      }
      for (int64_t i = 0; i < R; ++i) {
        k[at((t * H + h) * (P + R) + P + i)] = latent[at(t * (C + R) + C + i)];
      }
    }
  }
  return attention(q, k, v, {.heads = H, .kv_heads = H, .scale = o.scale}, P + R, V);
}

/// The same by the formula of the op: queries are taken to the latents, mixed latents to values.
template <class T>
std::vector<T> latent_attention_absorbed(const std::vector<T>& q, const std::vector<T>& latent,
                                         const std::vector<T>& kv_b,
                                         const LatentAttentionOptions& o, int64_t C, int64_t R) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  const auto tokens = static_cast<int64_t>(latent.size()) / (C + R);
  const int64_t H = o.heads, P = o.nope, V = o.value;
  std::vector<T> taken(at(tokens * H * (C + R))), c(at(tokens * C)), y(at(tokens * H * V));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < C; ++j) c[at(t * C + j)] = latent[at(t * (C + R) + j)];
    for (int64_t h = 0; h < H; ++h) {
      const int64_t from = (t * H + h) * (P + R), to = (t * H + h) * (C + R);
      for (int64_t j = 0; j < C; ++j) {
        for (int64_t i = 0; i < P; ++i) {
          taken[at(to + j)] += q[at(from + i)] * kv_b[at((h * (P + V) + i) * C + j)];
        }
      }
      for (int64_t i = 0; i < R; ++i) taken[at(to + C + i)] = q[at(from + P + i)];
    }
  }
  const std::vector<T> mixed =
      attention(taken, latent, c, {.heads = H, .kv_heads = 1, .scale = o.scale}, C + R, C);
  for (int64_t t = 0; t < tokens * H; ++t) {
    for (int64_t i = 0; i < V; ++i) {
      for (int64_t j = 0; j < C; ++j) {
        y[at(t * V + i)] += kv_b[at((t % H * (P + V) + P + i) * C + j)] * mixed[at(t * C + j)];
      }
    }
  }
  return y;
}

}  // namespace braid::reference
