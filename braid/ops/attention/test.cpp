// Goal: attention matches its definition at odd sizes, a query's bits depend on nothing but its own
// past, and the gradients are exact.
// Method: a templated reference (complex step for gradients), and the same tokens in other cuts,
// batches and thread counts, through caches that grow and caches that wrap around.

#include <memory>

#include "braid/ops/attention/attention.h"
#include "braid/ops/attention/cases.h"
#include "braid/ops/attention/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

struct Inputs {
  Tensor q, k, v;
  Inputs rows(int64_t begin, int64_t end) const {
    return {q.slice_rows(begin, end), k.slice_rows(begin, end), v.slice_rows(begin, end)};
  }
};

// Slices of one fused projection, so that rows are strided.
Inputs make_inputs(const AttentionCase& c, uint64_t seed, float scale = 1.0f) {
  const int64_t q = c.heads * c.head_dim, k = c.kv_heads * c.head_dim, v = c.kv_heads * c.value_dim;
  const Tensor qkv = test::randn({c.tokens, q + k + v}, seed, scale);
  return {qkv.slice_columns(0, q), qkv.slice_columns(q, q + k),
          qkv.slice_columns(q + k, q + k + v)};
}

AttentionOptions options_of(const AttentionCase& c) {
  return {.heads = c.heads, .kv_heads = c.kv_heads, .window = c.window};
}

// Pages that start as NaN, scattered in memory.
class Cache {
 public:
  Cache(const AttentionCase& c, DType dtype, int64_t pages) : dtype_(dtype) {
    fill(k_, attention_page_bytes(c.kv_heads, c.head_dim, dtype), pages);
    fill(v_, attention_page_bytes(c.kv_heads, c.value_dim, dtype), pages);
  }
  KvCache view() const {
    const auto count = static_cast<int64_t>(k_.pointers.size());
    return {.k = {.pages = k_.pointers.data(), .count = count},
            .v = {.pages = v_.pointers.data(), .count = count},
            .dtype = dtype_};
  }

 private:
  struct Pages {
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<void*> pointers;
  };
  static void fill(Pages& to, int64_t bytes, int64_t pages) {
    for (int64_t i = 0; i < pages; ++i) to.bytes.emplace_back(static_cast<size_t>(bytes), 0xFF);
    for (auto page = to.bytes.rbegin(); page != to.bytes.rend(); ++page) {
      to.pointers.push_back(page->data());
    }
  }
  DType dtype_;
  Pages k_, v_;
};

int64_t all_pages(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Feeds the tokens in pieces of the given lengths, the last one repeated.
Tensor in_pieces(Context& ctx, const AttentionCase& c, const Inputs& x, const KvCache& cache,
                 const std::vector<int64_t>& lengths) {
  std::vector<float> y;
  int64_t at = 0;
  for (size_t i = 0; at < c.tokens; ++i) {
    const int64_t length = std::min(c.tokens - at, lengths[std::min(i, lengths.size() - 1)]);
    const Inputs piece = x.rows(at, at + length);
    const Tensor part = attention(ctx, piece.q, piece.k, piece.v, SequenceBatch::single(length, at),
                                  options_of(c), {&cache, 1});
    y.insert(y.end(), part.f32(), part.f32() + part.count());
    at += length;
  }
  return host_tensor(std::move(y), {c.tokens, c.heads * c.value_dim});
}

std::vector<double> reference_of(const AttentionCase& c, const Inputs& x) {
  return reference::attention(test::values(x.q), test::values(x.k), test::values(x.v),
                              options_of(c), c.head_dim, c.value_dim);
}

TEST(Attention, MatchesReference) {
  Context ctx({.threads = 2, .poison = true});
  for (const AttentionCase& c : kAttentionCases) {
    SCOPED_TRACE(fmt::format("T {} H {}/{} hd {} window {}", c.tokens, c.heads, c.kv_heads,
                             c.head_dim, c.window));
    const Inputs x = make_inputs(c, 3);
    const Tensor y = attention(ctx, x.q, x.k, x.v, SequenceBatch::single(c.tokens), options_of(c));
    test::expect_close(y, reference_of(c, x), test::tolerance(DType::kF32, c.head_dim), "y");
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  Context ctx({.threads = 1, .poison = true});
  const AttentionCase c{.tokens = 150, .heads = 2, .kv_heads = 1, .head_dim = 16, .value_dim = 16};
  const Inputs x = make_inputs(c, 3, 60.0f);  // scores of some ten thousands
  const Tensor y = attention(ctx, x.q, x.k, x.v, SequenceBatch::single(c.tokens), options_of(c));
  // The rounding of a score of 10^4 moves a weight by a factor of e^(10^4 eps).
  test::expect_close(y, reference_of(c, x), test::tolerance(DType::kF32, c.head_dim) * 60 * 60,
                     "y");
}

TEST(Attention, AnyCutGivesTheSameBits) {
  Context ctx({.threads = 2, .poison = true});
  for (const AttentionCase& c : kAttentionCases) {
    SCOPED_TRACE(fmt::format("T {} H {}/{} hd {} window {}", c.tokens, c.heads, c.kv_heads,
                             c.head_dim, c.window));
    const Inputs x = make_inputs(c, 5);
    test::on_every_target([&] {
      const Tensor whole =
          attention(ctx, x.q, x.k, x.v, SequenceBatch::single(c.tokens), options_of(c));
      Tensor rounded;
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        for (const auto& lengths : std::vector<std::vector<int64_t>>{
                 {c.tokens}, {1}, {17}, {130}, {c.tokens / 3 + 1, 1}, {64, 3}}) {
          const Cache cache(c, dtype, all_pages(c.tokens));
          const Tensor y = in_pieces(ctx, c, x, cache.view(), lengths);
          if (dtype == DType::kBF16 && !rounded.defined()) rounded = y;
          EXPECT_TRUE(test::same_bits(y, dtype == DType::kF32 ? whole : rounded))
              << to_string(dtype) << " pieces of " << lengths[0];
        }
      }
      test::expect_close(rounded, test::values(whole), test::tolerance(DType::kBF16, 1), "bf16");
    });
  }
}

// Values that are the first dimensions of the keys: the bits are those of a v of its own, whatever
// the pages hold and however the rows are shared between threads.
TEST(Attention, ValuesInsideKeys) {
  for (const AttentionCase& c :
       {AttentionCase{1, 4, 1, 24, 16, 0}, AttentionCase{65, 16, 1, 72, 64, 0},
        AttentionCase{130, 3, 1, 104, 40, 0}, AttentionCase{197, 4, 2, 48, 48, 0}}) {
    SCOPED_TRACE(fmt::format("T {} H {}/{} hd {}", c.tokens, c.heads, c.kv_heads, c.head_dim));
    const Inputs x = make_inputs(c, 6);
    const Tensor k = host_tensor(test::as<float>(test::values(x.k)), x.k.shape());
    std::vector<float> v;
    for (int64_t i = 0; i < c.tokens * c.kv_heads; ++i) {
      v.insert(v.end(), k.f32() + i * c.head_dim, k.f32() + i * c.head_dim + c.value_dim);
    }
    Inputs apart = x;
    apart.v = host_tensor(std::move(v), {c.tokens, c.kv_heads * c.value_dim});
    AttentionOptions options = options_of(c);
    const SequenceBatch whole = SequenceBatch::single(c.tokens);
    Context one({.threads = 1}), many({.threads = 3, .poison = true});
    const Tensor want = attention(one, x.q, x.k, apart.v, whole, options);
    options.values_in_keys = c.value_dim;
    EXPECT_TRUE(test::same_bits(attention(many, x.q, x.k, {}, whole, options), want));
    const auto in_pages = [&](DType dtype) {
      const Cache of_both(c, dtype, all_pages(c.tokens));
      const Tensor y = in_pieces(one, c, apart, of_both.view(), {c.tokens});
      for (const int64_t piece : {c.tokens, int64_t{1}, int64_t{17}}) {
        const Cache cache(c, dtype, all_pages(c.tokens));
        const KvCache view{.k = cache.view().k, .v = {}, .dtype = dtype};
        for (int64_t at = 0; at < c.tokens; at += piece) {
          const int64_t end = std::min(c.tokens, at + piece);
          const Tensor part = attention(many, x.q.slice_rows(at, end), x.k.slice_rows(at, end), {},
                                        SequenceBatch::single(end - at, at), options, {&view, 1});
          EXPECT_TRUE(test::same_bits(part, y.slice_rows(at, end)))
              << to_string(dtype) << " " << at;
        }
      }
    };
    test::on_every_target([&] {
      in_pages(DType::kF32);
      in_pages(DType::kBF16);
    });
  }
}

TEST(Attention, RingGivesTheSameBits) {
  Context ctx({.threads = 2, .poison = true});
  for (const int64_t window : {1, 64, 65, 100}) {
    const AttentionCase c{.tokens = 400,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_dim = 16,
                          .value_dim = 16,
                          .window = window};
    const Inputs x = make_inputs(c, 7);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Cache growing(c, dtype, all_pages(c.tokens));
      const Tensor want = in_pieces(ctx, c, x, growing.view(), {c.tokens});
      for (const auto& lengths : std::vector<std::vector<int64_t>>{
               {c.tokens}, {1}, {17}, {130}, {200, 1}, {63, 130, 1, 64}}) {
        const Cache ring(c, dtype, all_pages(window + 63));
        EXPECT_TRUE(test::same_bits(in_pieces(ctx, c, x, ring.view(), lengths), want))
            << to_string(dtype) << " window " << window << " pieces of " << lengths[0];
      }
    }
  }
}

TEST(Attention, RingFarOut) {
  // The same tokens 2^40 later, on the same place of the grid.
  Context ctx({.threads = 1});
  const AttentionCase c{
      .tokens = 300, .heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 8, .window = 40};
  const Inputs x = make_inputs(c, 7);
  const auto last = [&](int64_t start) {
    const Cache cache(c, DType::kF32, 3);
    const KvCache view = cache.view();
    for (int64_t at = 0; at < 200; at += 50) {
      const Inputs piece = x.rows(at, at + 50);
      attention(ctx, piece.q, piece.k, piece.v, SequenceBatch::single(50, start + at),
                options_of(c), {&view, 1});
    }
    const Inputs piece = x.rows(200, 300);
    return attention(ctx, piece.q, piece.k, piece.v, SequenceBatch::single(100, start + 200),
                     options_of(c), {&view, 1});
  };
  EXPECT_TRUE(test::same_bits(last(0), last((int64_t{1} << 40) - 64)));
}

TEST(Attention, PackedIsSeparate) {
  Context one({.threads = 1}), two({.threads = 2, .poison = true});
  const AttentionCase c{
      .tokens = 265, .heads = 6, .kv_heads = 3, .head_dim = 24, .value_dim = 24, .window = 70};
  const Inputs x = make_inputs(c, 9);
  SequenceBatch batch;
  for (const int64_t length : {65, 0, 1, 199}) batch.add(length, 0);
  const Tensor packed = attention(two, x.q, x.k, x.v, batch, options_of(c));
  EXPECT_TRUE(test::same_bits(packed, attention(one, x.q, x.k, x.v, batch, options_of(c))));
  std::vector<std::unique_ptr<Cache>> caches;
  std::vector<KvCache> views;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    caches.push_back(std::make_unique<Cache>(c, DType::kF32, all_pages(199)));
    views.push_back(caches.back()->view());
    const Inputs part =
        x.rows(batch.offsets[static_cast<size_t>(s)], batch.offsets[static_cast<size_t>(s) + 1]);
    const Tensor y =
        attention(one, part.q, part.k, part.v, SequenceBatch::single(part.q.rows()), options_of(c));
    EXPECT_TRUE(test::same_bits(y, packed.slice_rows(batch.offsets[static_cast<size_t>(s)],
                                                     batch.offsets[static_cast<size_t>(s) + 1])));
  }
  EXPECT_TRUE(test::same_bits(packed, attention(two, x.q, x.k, x.v, batch, options_of(c), views)));
}

TEST(Attention, NothingGivesNothing) {
  Context ctx({.threads = 2});
  const AttentionCase c{.tokens = 0, .heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 8};
  const Inputs x = make_inputs(c, 1);
  const Tensor y = attention(ctx, x.q, x.k, x.v, SequenceBatch(), options_of(c));
  EXPECT_EQ(y.shape(), (Shape{0, 16}));
  EXPECT_EQ(attention(ctx, x.q, x.k, x.v, SequenceBatch(), options_of(c), {}).shape(), y.shape());
}

TEST(Attention, GradientsAreExact) {
  Context ctx({.threads = 2, .poison = true});
  for (const AttentionCase& c : {AttentionCase{5, 2, 1, 8, 8, 0}, AttentionCase{13, 4, 2, 8, 16, 3},
                                 AttentionCase{67, 2, 1, 8, 8, 65}}) {
    const Inputs x = make_inputs(c, 11);
    Tensor q = x.q, k = x.k, v = x.v;
    Tape tape;
    for (Tensor* input : {&q, &k, &v}) tape.watch(*input);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = attention(taped, q, k, v, SequenceBatch::single(c.tokens), options_of(c));
    const Tensor dy = test::randn(y.shape(), 12);
    tape.backward(ctx, {y}, {dy});
    const auto loss = [&](const std::vector<Complex>& a, const std::vector<Complex>& b,
                          const std::vector<Complex>& d) {
      return test::dot(reference::attention(a, b, d, options_of(c), c.head_dim, c.value_dim),
                       test::values(dy));
    };
    const auto zq = test::as<Complex>(test::values(q)), zk = test::as<Complex>(test::values(k)),
               zv = test::as<Complex>(test::values(v));
    const double tol = test::tolerance(DType::kF32, c.tokens);
    test::expect_close(
        tape.grad(q),
        test::complex_step(test::values(q), [&](const auto& z) { return loss(z, zk, zv); }), tol,
        "dq");
    test::expect_close(
        tape.grad(k),
        test::complex_step(test::values(k), [&](const auto& z) { return loss(zq, z, zv); }), tol,
        "dk");
    test::expect_close(
        tape.grad(v),
        test::complex_step(test::values(v), [&](const auto& z) { return loss(zq, zk, z); }), tol,
        "dv");
  }
}

// Gradients of a long packed batch: those of its sequences alone, for any number of threads.
TEST(Attention, GradientsOfPackedAreSeparate) {
  Context one({.threads = 1, .poison = true}), two({.threads = 2, .poison = true});
  const AttentionCase c{
      .tokens = 330, .heads = 6, .kv_heads = 2, .head_dim = 24, .value_dim = 40, .window = 100};
  const Inputs x = make_inputs(c, 13);
  const Tensor dy = test::randn({c.tokens, c.heads * c.value_dim}, 14);
  const auto gradients = [&](Context& ctx, int64_t begin, int64_t end, const SequenceBatch& batch) {
    Inputs part = x.rows(begin, end);
    Tape tape;
    for (Tensor* input : {&part.q, &part.k, &part.v}) tape.watch(*input);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = attention(taped, part.q, part.k, part.v, batch, options_of(c));
    tape.backward(ctx, {y}, {dy.slice_rows(begin, end)});
    return Inputs{tape.grad(part.q), tape.grad(part.k), tape.grad(part.v)};
  };
  SequenceBatch batch;
  for (const int64_t length : {130, 0, 200}) batch.add(length, 0);
  const Inputs packed = gradients(two, 0, 330, batch);
  const Inputs again = gradients(one, 0, 330, batch);
  for (const auto& [begin, end] : {std::pair{0, 130}, std::pair{130, 330}}) {
    const Inputs alone = gradients(one, begin, end, SequenceBatch::single(end - begin));
    EXPECT_TRUE(test::same_bits(alone.q, packed.q.slice_rows(begin, end)));
    EXPECT_TRUE(test::same_bits(alone.k, packed.k.slice_rows(begin, end)));
    EXPECT_TRUE(test::same_bits(alone.v, packed.v.slice_rows(begin, end)));
  }
  EXPECT_TRUE(test::same_bits(again.q, packed.q));
  EXPECT_TRUE(test::same_bits(again.k, packed.k));
  EXPECT_TRUE(test::same_bits(again.v, packed.v));
}

TEST(Attention, RefusesTheImpossible) {
  Context ctx({.threads = 1});
  const auto run = [&](AttentionCase c, int64_t pages) {
    const Inputs x = make_inputs(c, 1);
    const Cache cache(c, DType::kF32, pages);
    const KvCache view = cache.view();
    return attention(ctx, x.q, x.k, x.v, SequenceBatch::single(c.tokens), options_of(c),
                     {&view, 1});
  };
  EXPECT_NO_THROW(run({100, 4, 2, 16, 16, 0}, 2));
  EXPECT_THROW(run({100, 4, 2, 16, 16, 0}, 1), Error);   // pages for 64 tokens only
  EXPECT_THROW(run({100, 4, 2, 16, 16, 20}, 1), Error);  // a ring that loses keys
  EXPECT_THROW(run({10, 4, 3, 16, 16, 0}, 1), Error);    // heads do not divide
  EXPECT_THROW(run({10, 4, 2, 12, 16, 0}, 1), Error);    // head width
  EXPECT_THROW(run({10, 4, 2, 16, 16, -1}, 1), Error);   // window
  const Inputs x = make_inputs({10, 4, 2, 16, 16, 0}, 1);
  const auto inside = [&](const Tensor& v, const AttentionOptions& options) {
    return attention(ctx, x.q, x.k, v, SequenceBatch::single(10), options);
  };
  EXPECT_NO_THROW(inside({}, {.heads = 4, .kv_heads = 2, .values_in_keys = 8}));
  EXPECT_THROW(inside(x.v, {.heads = 4, .kv_heads = 2, .values_in_keys = 8}), Error);
  EXPECT_THROW(inside({}, {.heads = 4, .kv_heads = 2, .window = 5, .values_in_keys = 8}), Error);
  EXPECT_THROW(inside({}, {.heads = 4, .kv_heads = 2, .values_in_keys = 24}), Error);
  EXPECT_THROW(inside({}, {.heads = 4, .kv_heads = 2}), Error);
  EXPECT_THROW(attention(ctx, x.q, x.k, x.v, SequenceBatch::single(9), {.heads = 4, .kv_heads = 2}),
               Error);
}

}  // namespace
}  // namespace braid
