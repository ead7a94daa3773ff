#include "braid/ops/latent_attention/latent_attention.h"

#include <algorithm>
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

// c (N, H * c_head) <- a (N, H * a_head) by each head's part of b.
void multiply_heads(Context& ctx, HeadProductDims dims, const Tensor& a, const void* b,
                    const Tensor& c) {
  dims.a_row = a.row_stride();
  dims.c_row = c.row_stride();
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::head_products_scratch(dims)});
  HeadProducts::run(ctx, "latent_attention", dims, a.f32(), b, c.f32(), scratch.f32());
}

// Every head's query against latents, [W_k^T a | b]: (n, H * (P + R)) -> (n, H * (C + R)).
Tensor absorb_queries(Context& ctx, const Sizes& s, const Tensor& q, const Weight& kv_b,
                      const Tensor& transpose, const LatentAttentionOptions& o) {
  Tensor absorbed = ctx.empty({q.rows(), o.heads * (s.latent + s.rope)});
  multiply_heads(ctx,
                 {.rows = q.rows(),
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
                 q, transpose.raw(), absorbed);
  return absorbed;
}

// (n, H * C) -> y (n, H * V)
void expand_values(Context& ctx, const Sizes& s, const Tensor& mixed, const Weight& kv_b,
                   const LatentAttentionOptions& o, const Tensor& y) {
  multiply_heads(ctx,
                 {.rows = mixed.rows(),
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
                 mixed, kv_b.packed(), y);
}

// Rows [begin, end) of a batch, with the caches of their sequences.
struct Piece {
  int64_t begin, end;
  SequenceBatch batch;
  std::vector<KvCache> caches;
};

Piece piece_of(const SequenceBatch& batch, std::span<const LatentCache> caches, int64_t begin,
               int64_t end) {
  Piece piece{.begin = begin, .end = end, .batch = {}, .caches = {}};
  for (size_t s = 0; s < caches.size(); ++s) {
    const int64_t first = std::max(begin, batch.offsets[s]);
    const int64_t last = std::min(end, batch.offsets[s + 1]);
    if (first >= last) continue;
    piece.batch.add(last - first, batch.starts[s] + first - batch.offsets[s]);
    piece.caches.push_back({.k = caches[s].pages, .v = {}, .dtype = caches[s].dtype});
  }
  return piece;
}

// A query over latents is several times as wide as a query: 2^24 floats of them at a time.
int64_t rows_of_piece(const Sizes& s, const LatentAttentionOptions& o) {
  return std::max(kPageTokens, (int64_t{1} << 24) / (o.heads * (s.latent + s.rope)));
}

}  // namespace

Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options,
                        std::span<const LatentCache> caches) {
  const Sizes s = check_operands(ctx, q, latent, kv_b, batch, options);
  check(std::ssize(caches) == batch.sequences(), "latent_attention: there are {} caches, want {}",
        caches.size(), batch.sequences());
  const AttentionOptions shared{
      .heads = options.heads, .kv_heads = 1, .scale = options.scale, .values_in_keys = s.latent};
  const Tensor transpose = kv_b.packed_transpose(ctx);
  const int64_t step = rows_of_piece(s, options);
  Tensor y = ctx.empty({s.rows, options.heads * options.value});
  for (int64_t at = 0; at < s.rows; at += step) {
    const Piece piece = piece_of(batch, caches, at, std::min(s.rows, at + step));
    const Tensor absorbed =
        absorb_queries(ctx, s, q.slice_rows(piece.begin, piece.end), kv_b, transpose, options);
    const Tensor mixed = attention(ctx, absorbed, latent.slice_rows(piece.begin, piece.end), {},
                                   piece.batch, shared, piece.caches);
    expand_values(ctx, s, mixed, kv_b, options, y.slice_rows(piece.begin, piece.end));
  }
  return y;
}

Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options) {
  check(latent.rank() == 2, "latent_attention: latent has shape {}, want (N, C + R)",
        to_string(latent.shape()));
  const int64_t bytes = attention_page_bytes(1, latent.dim(1), DType::kF32);
  SequenceBatch whole;  // each sequence from its own token 0
  std::vector<int64_t> ends;
  std::vector<void*> pages;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    whole.add(batch.length(s));
    pages.resize(pages.size() +
                 static_cast<size_t>((batch.length(s) + kPageTokens - 1) / kPageTokens));
    ends.push_back(std::ssize(pages));
  }
  const Tensor storage = ctx.empty({std::ssize(pages), bytes}, DType::kU8);
  for (size_t p = 0; p < pages.size(); ++p) {
    pages[p] = storage.data<uint8_t>() + static_cast<int64_t>(p) * bytes;
  }
  std::vector<LatentCache> caches;
  for (size_t s = 0; s < ends.size(); ++s) {
    const int64_t first = s == 0 ? 0 : ends[s - 1];
    caches.push_back({.pages = {.pages = pages.data() + first, .count = ends[s] - first}});
  }
  return latent_attention(ctx, q, latent, kv_b, whole, options, caches);
}

}  // namespace braid
