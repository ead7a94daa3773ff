#include "braid/ops/latent_attention/latent_attention.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/attention/attention.h"
#include "braid/ops/latent_attention/kernels.h"

namespace braid {

using HeadProducts = Kernel<&cpu::head_products>;

namespace {

struct Sizes {
  int64_t rows, latent, rope;  // N, C, R
};

Sizes check_operands(const Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                     const SequenceBatch& batch, const LatentAttentionOptions& o) {
  check(o.heads > 0 && o.nope > 0 && o.value > 0 && o.nope % 2 == 0 && o.value % 2 == 0,
        "latent_attention: {} heads of {} and values of {}, want positive even sizes", o.heads,
        o.nope, o.value);
  check(o.scale > 0, "latent_attention: the scale is {}, want a positive one", o.scale);
  check(kv_b.defined() && kv_b.rows() == o.heads * (o.nope + o.value),
        "latent_attention: kv_b has {} rows, want {}", kv_b.defined() ? kv_b.rows() : 0,
        o.heads * (o.nope + o.value));
  const int64_t n = batch.tokens(), C = kv_b.cols();
  check(latent.rank() == 2 && latent.rows() == n && latent.dim(1) >= C,
        "latent_attention: latent has shape {}, want ({}, {} and more)", to_string(latent.shape()),
        n, C);
  const int64_t R = latent.dim(1) - C, width = o.heads * (o.nope + R);
  check(C % 8 == 0 && R % 8 == 0 && C + R <= 1024,
        "latent_attention: latents are {} + {} wide, want multiples of 8 up to 1024", C, R);
  check(q.rank() == 2 && q.rows() == n && q.dim(1) == width,
        "latent_attention: q has shape {}, want ({}, {})", to_string(q.shape()), n, width);
  check(ctx.tape() == nullptr || !(Tape::tracks(q) || Tape::tracks(latent)),
        "latent_attention: has no gradient; expand keys and values in training");
  return {.rows = n, .latent = C, .rope = R};
}

// c (N, H * c_head) of a (N, H * a_head).
Tensor product(Context& ctx, HeadProductDims dims, const Tensor& a, const void* b) {
  Tensor c = ctx.empty({dims.rows, dims.heads * dims.c_head});
  dims.a_row = a.row_stride();
  dims.c_row = c.row_stride();
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::head_products_scratch(dims)});
  HeadProducts::run(ctx, "latent_attention", dims, a.f32(), b, c.f32(), scratch.f32());
  return c;
}

// Every head's query against latents: [W_k^T a | b].
Tensor absorb_queries(Context& ctx, const Sizes& s, const Tensor& q, const Weight& kv_b,
                      const LatentAttentionOptions& o) {
  const Tensor packed = kv_b.packed_transpose(ctx);
  return product(ctx,
                 {.rows = s.rows,
                  .heads = o.heads,
                  .n = s.latent,
                  .k = o.nope,
                  .b = kv_b.transposed_matrix(),
                  .row = 0,
                  .row_step = 0,
                  .column = 0,
                  .column_step = o.nope + o.value,
                  .a_row = 0,
                  .a_head = o.nope + s.rope,
                  .c_row = 0,
                  .c_head = s.latent + s.rope,
                  .tail = s.rope},
                 q, packed.raw());
}

Tensor expand_values(Context& ctx, const Sizes& s, const Tensor& mixed, const Weight& kv_b,
                     const LatentAttentionOptions& o) {
  return product(ctx,
                 {.rows = s.rows,
                  .heads = o.heads,
                  .n = o.value,
                  .k = s.latent,
                  .b = kv_b.matrix(),
                  .row = o.nope,
                  .row_step = o.nope + o.value,
                  .column = 0,
                  .column_step = 0,
                  .a_row = 0,
                  .a_head = s.latent,
                  .c_row = 0,
                  .c_head = o.value,
                  .tail = 0},
                 mixed, kv_b.packed());
}

AttentionOptions shared_key(const Sizes& s, const LatentAttentionOptions& o) {
  return {.heads = o.heads, .kv_heads = 1, .scale = o.scale, .values_in_keys = s.latent};
}

}  // namespace

Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options) {
  const Sizes s = check_operands(ctx, q, latent, kv_b, batch, options);
  const Tensor absorbed = absorb_queries(ctx, s, q, kv_b, options);
  const Tensor mixed = attention(ctx, absorbed, latent, {}, batch, shared_key(s, options));
  return expand_values(ctx, s, mixed, kv_b, options);
}

Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options,
                        std::span<const LatentCache> caches) {
  const Sizes s = check_operands(ctx, q, latent, kv_b, batch, options);
  std::vector<KvCache> shared;
  for (const LatentCache& cache : caches) {
    shared.push_back({.k = cache.pages, .v = {}, .dtype = cache.dtype});
  }
  const Tensor absorbed = absorb_queries(ctx, s, q, kv_b, options);
  const Tensor mixed = attention(ctx, absorbed, latent, {}, batch, shared_key(s, options), shared);
  return expand_values(ctx, s, mixed, kv_b, options);
}

}  // namespace braid
