// Goal: the absorbed form is the same function as attention to expanded keys and values, and a
// query's bits depend on nothing but its own past.
// Method: both formulas in float64, the op against the expanded one, and the same tokens in other
// cuts, batches and thread counts.

#include <memory>

#include "braid/ops/latent_attention/cases.h"
#include "braid/ops/latent_attention/latent_attention.h"
#include "braid/ops/latent_attention/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

struct Inputs {
  Tensor q, latent, kv_b;
};

LatentAttentionOptions options_of(const LatentAttentionCase& c) {
  return {.heads = c.heads,
          .nope = c.nope,
          .value = c.value,
          .scale = 1 / std::sqrt(static_cast<double>(c.nope + c.rope))};
}

// Slices of a wider projection, so that rows are strided; what an expansion gives is of unit scale.
Inputs make_inputs(const LatentAttentionCase& c, uint64_t seed) {
  const int64_t q = c.heads * (c.nope + c.rope), latent = c.latent + c.rope;
  const Tensor both = test::randn({c.tokens, q + latent + 3}, seed);
  const float scale = 1 / std::sqrt(static_cast<float>(c.latent));
  Tensor kv_b = test::randn({c.heads * (c.nope + c.value), c.latent}, seed + 1, scale);
  for (int64_t i = 0; i < kv_b.count(); ++i) kv_b.f32()[i] = to_float(to_bf16(kv_b.f32()[i]));
  return {both.slice_columns(1, 1 + q), both.slice_columns(1 + q, 1 + q + latent), kv_b};
}

Weight make_weight(Context& ctx, const Inputs& x, DType dtype = DType::kF32) {
  return Weight::make(ctx, x.kv_b, {.packed_dtype = dtype, .both_ways = true});
}

std::vector<double> reference_of(const LatentAttentionCase& c, const Inputs& x) {
  return reference::latent_attention(test::values(x.q), test::values(x.latent),
                                     test::values(x.kv_b), options_of(c), c.latent, c.rope);
}

std::string name_of(const LatentAttentionCase& c) {
  return fmt::format("T {} H {} C {} P {} R {} V {}", c.tokens, c.heads, c.latent, c.nope, c.rope,
                     c.value);
}

// Pages that start as NaN.
class Cache {
 public:
  Cache(const LatentAttentionCase& c, DType dtype, int64_t tokens) : dtype_(dtype) {
    const int64_t bytes = kPageTokens * (c.latent + c.rope) * static_cast<int64_t>(size_of(dtype));
    for (int64_t t = 0; t < tokens; t += kPageTokens) {
      pages_.emplace_back(static_cast<size_t>(bytes), uint8_t{0xFF});
    }
    for (auto& page : pages_) pointers_.push_back(page.data());
  }
  LatentCache view() const {
    return {.pages = {.pages = pointers_.data(), .count = std::ssize(pointers_)}, .dtype = dtype_};
  }

 private:
  DType dtype_;
  std::vector<std::vector<uint8_t>> pages_;
  std::vector<void*> pointers_;
};

Tensor in_pieces(Context& ctx, const LatentAttentionCase& c, const Inputs& x, const Weight& kv_b,
                 DType dtype, int64_t length) {
  const Cache cache(c, dtype, c.tokens);
  const LatentCache view = cache.view();
  std::vector<float> y;
  for (int64_t at = 0; at < c.tokens; at += length) {
    const int64_t end = std::min(c.tokens, at + length);
    const Tensor part =
        latent_attention(ctx, x.q.slice_rows(at, end), x.latent.slice_rows(at, end), kv_b,
                         SequenceBatch::single(end - at, at), options_of(c), {&view, 1});
    y.insert(y.end(), part.f32(), part.f32() + part.count());
  }
  return host_tensor(std::move(y), {c.tokens, c.heads * c.value});
}

TEST(LatentAttention, AbsorbedIsExpanded) {
  for (const LatentAttentionCase& c : kLatentAttentionCases) {
    SCOPED_TRACE(name_of(c));
    const Inputs x = make_inputs(c, 1);
    const auto absorbed =
        reference::latent_attention_absorbed(test::values(x.q), test::values(x.latent),
                                             test::values(x.kv_b), options_of(c), c.latent, c.rope);
    test::expect_close(absorbed, reference_of(c, x), test::tolerance(DType::kF64, c.latent), "y");
  }
}

TEST(LatentAttention, MatchesReference) {
  Context ctx({.threads = 2, .poison = true});
  for (const LatentAttentionCase& c : kLatentAttentionCases) {
    SCOPED_TRACE(name_of(c));
    const Inputs x = make_inputs(c, 3);
    const auto want = reference_of(c, x);
    test::on_every_target([&] {
      const Tensor y = latent_attention(ctx, x.q, x.latent, make_weight(ctx, x),
                                        SequenceBatch::single(c.tokens), options_of(c));
      test::expect_close(y, want, test::tolerance(DType::kF32, c.latent), "f32");
      const Tensor z = latent_attention(ctx, x.q, x.latent, make_weight(ctx, x, DType::kBF16),
                                        SequenceBatch::single(c.tokens), options_of(c));
      test::expect_close(z, want, test::tolerance(DType::kBF16, 1), "bf16 matrix");
    });
  }
}

TEST(LatentAttention, AnyCutGivesTheSameBits) {
  Context one({.threads = 1}), many({.threads = 3, .poison = true});
  for (const LatentAttentionCase& c : kLatentAttentionCases) {
    SCOPED_TRACE(name_of(c));
    const Inputs x = make_inputs(c, 5);
    for (const DType matrix : {DType::kF32, DType::kBF16}) {
      const Weight kv_b = make_weight(one, x, matrix);
      const Tensor whole = latent_attention(one, x.q, x.latent, kv_b,
                                            SequenceBatch::single(c.tokens), options_of(c));
      const Tensor rounded = in_pieces(one, c, x, kv_b, DType::kBF16, c.tokens);
      test::expect_close(rounded, test::values(whole), test::tolerance(DType::kBF16, 1), "bf16");
      for (const int64_t length : {c.tokens, int64_t{1}, int64_t{17}}) {
        EXPECT_TRUE(test::same_bits(in_pieces(many, c, x, kv_b, DType::kF32, length), whole));
        EXPECT_TRUE(test::same_bits(in_pieces(many, c, x, kv_b, DType::kBF16, length), rounded));
      }
    }
  }
}

// So many heads that a call works through its rows in pieces of 128.
TEST(LatentAttention, LongCallsAreTakenInPieces) {
  Context ctx({.threads = 2, .poison = true});
  const LatentAttentionCase c{
      .tokens = 300, .heads = 256, .latent = 504, .nope = 2, .rope = 8, .value = 2};
  const Inputs x = make_inputs(c, 7);
  const Weight kv_b = make_weight(ctx, x);
  SequenceBatch batch;
  for (const int64_t length : {100, 0, 29, 171}) batch.add(length);
  const Tensor packed = latent_attention(ctx, x.q, x.latent, kv_b, batch, options_of(c));
  for (const size_t s : {0u, 2u, 3u}) {
    LatentAttentionCase alone = c;
    const int64_t begin = batch.offsets[s], end = batch.offsets[s + 1];
    alone.tokens = end - begin;
    const Inputs part{x.q.slice_rows(begin, end), x.latent.slice_rows(begin, end), x.kv_b};
    const Tensor y = in_pieces(ctx, alone, part, kv_b, DType::kF32, 50);
    EXPECT_TRUE(test::same_bits(y, packed.slice_rows(begin, end))) << s;
  }
}

TEST(LatentAttention, PackedIsSeparate) {
  Context one({.threads = 1}), two({.threads = 2, .poison = true});
  const LatentAttentionCase c{
      .tokens = 265, .heads = 3, .latent = 40, .nope = 16, .rope = 8, .value = 24};
  const Inputs x = make_inputs(c, 9);
  const Weight kv_b = make_weight(one, x);
  SequenceBatch batch;
  for (const int64_t length : {65, 0, 1, 199}) batch.add(length, 0);
  const Tensor packed = latent_attention(two, x.q, x.latent, kv_b, batch, options_of(c));
  for (size_t s = 0; s < 4; ++s) {
    const int64_t begin = batch.offsets[s], end = batch.offsets[s + 1];
    const Tensor alone =
        latent_attention(one, x.q.slice_rows(begin, end), x.latent.slice_rows(begin, end), kv_b,
                         SequenceBatch::single(end - begin), options_of(c));
    EXPECT_TRUE(test::same_bits(alone, packed.slice_rows(begin, end)));
  }
}

TEST(LatentAttention, RefusesTheImpossible) {
  Context ctx({.threads = 1});
  const LatentAttentionCase c{
      .tokens = 5, .heads = 2, .latent = 16, .nope = 8, .rope = 8, .value = 8};
  const Inputs x = make_inputs(c, 1);
  const Weight kv_b = make_weight(ctx, x);
  const auto run = [&](const Tensor& q, const Tensor& latent, const LatentAttentionOptions& o) {
    return latent_attention(ctx, q, latent, kv_b, SequenceBatch::single(5), o);
  };
  EXPECT_NO_THROW(run(x.q, x.latent, options_of(c)));
  LatentAttentionOptions o = options_of(c);
  o.scale = 0;
  EXPECT_THROW(run(x.q, x.latent, o), Error);
  o = options_of(c);
  o.nope = 10;  // rows of kv_b
  EXPECT_THROW(run(x.q, x.latent, o), Error);
  EXPECT_THROW(run(x.latent, x.latent, options_of(c)), Error);
  EXPECT_THROW(run(x.q, x.latent.slice_columns(0, 12), options_of(c)), Error);
  EXPECT_THROW(run(x.q, x.latent.slice_rows(0, 4), options_of(c)), Error);
  Tape tape;
  Tensor q = x.q;
  tape.watch(q);
  Context taped = ctx.with_tape(&tape);
  EXPECT_THROW(latent_attention(taped, q, x.latent, kv_b, SequenceBatch::single(5), options_of(c)),
               Error);
}

}  // namespace
}  // namespace braid
