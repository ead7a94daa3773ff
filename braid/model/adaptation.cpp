#include "braid/model/adaptation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "braid/core/error.h"
#include "braid/core/rng.h"
#include "braid/core/thread_pool.h"
#include "braid/model/stack.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/linear/linear.h"
#include "braid/simd/gemm.h"

namespace braid {
namespace {

enum Slot : size_t { kFast, kSum, kPending };

// Of the directions P: the same for every model, so that they need not be saved.
constexpr uint64_t kSeed = 0x6164617074;

Tensor random_directions(int64_t rank, int64_t width) {
  const Rng rng(kSeed);
  std::vector<float> p(static_cast<size_t>(rank * width));
  for (size_t i = 0; i < p.size(); ++i) p[i] = rng.normal(i);
  return host_tensor(std::move(p), {rank, width});
}

double mean_squared_row(const Weight& w) {
  std::vector<float> row(static_cast<size_t>(w.cols()));
  double sum = 0;
  for (int64_t i = 0; i < w.rows(); ++i) {
    w.row(i, row.data());
    for (const float x : row) sum += static_cast<double>(x) * x;
  }
  return sum / static_cast<double>(w.rows());
}

Weight transpose(Context& ctx, const Weight& w) {
  const Tensor plain = w.to_plain(ctx, DType::kF32);
  Tensor t = host_tensor(std::vector<float>(static_cast<size_t>(plain.count())),
                         {plain.dim(1), plain.dim(0)});
  simd::transpose(plain.dim(0), plain.dim(1), plain.f32(), plain.row_stride(), t.f32(),
                  t.row_stride());
  return Weight::make(ctx, t, {.packed_dtype = w.dtype()});
}

// Each row by its own softmax, in float32.
void softmax_rows(ThreadPool& threads, const Tensor& x) {
  const int64_t n = x.dim(1);
  threads.parallel_for(x.rows(), std::max<int64_t>(1, 4096 / n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = x.f32() + i * x.row_stride();
      const float most = *std::max_element(row, row + n);
      float sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += row[j] = std::exp(row[j] - most);
      for (int64_t j = 0; j < n; ++j) row[j] /= sum;
    }
  });
}

}  // namespace

// One sequence of the batch in the middle of a call.
struct Adaptation::Sequence {
  float* fast;     // U (R, D)
  float* sum;      // of z g^T since the last update
  float* pending;  // z (R) and W^T p (D) of the last token, whose successor is not known yet
  int64_t row = 0, position = 0, left = 0;  // the next token
  int64_t taken = 0;                        // tokens of the present round
};

Adaptation::Adaptation(Context& ctx, const Stack& stack, const AdaptationOptions& options)
    : options_(options) {
  width_ = stack.config().width;
  vocab_ = stack.config().vocab;
  check(ctx.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "adapt: device {}, want cpu", to_string(ctx.device()));
  if (options.rank == 0) options_.rank = std::min<int64_t>(64, width_);
  const int64_t R = options_.rank;
  check(1 <= R && R <= width_, "adapt: rank {}, want 1..{}, the width", R, width_);
  check(1 <= options.batch && options.batch <= 4096, "adapt: batch of {} tokens, want 1..4096",
        options.batch);
  check(std::isfinite(options.rate) && options.rate >= 0, "adapt: rate {}, want at least 0",
        options.rate);
  check(options.horizon > 0, "adapt: horizon of {} tokens, want more than 0", options.horizon);
  identity_ = fmt::format("rank={},batch={},rate={},horizon={}", R, options.batch, options.rate,
                          options.horizon);
  head_ = stack.head();
  head_transpose_ = transpose(ctx, head_);
  directions_ = Weight::make(ctx, random_directions(R, width_));
  const double s = stack.config().logit_scale;
  logit_scale_ = static_cast<float>(s);
  keep_ = static_cast<float>(std::exp(-static_cast<double>(options.batch) / options.horizon));
  step_ = static_cast<float>(options.rate / std::max(s * s * mean_squared_row(head_), 1e-30));
}

StateSpec Adaptation::state_spec() const {
  const int64_t R = options_.rank;
  return {{.name = "adapt_fast", .shape = {R, width_}},
          {.name = "adapt_sum", .shape = {R, width_}},
          {.name = "adapt_pending", .shape = {R + width_}}};
}

// Without a state they live in `fresh`, which is zero.
std::vector<Adaptation::Sequence> Adaptation::sequences(const SequenceBatch& batch,
                                                        const LayerState* state,
                                                        std::vector<float>* fresh) const {
  const auto S = static_cast<size_t>(batch.sequences());
  const int64_t matrix = options_.rank * width_, all = 2 * matrix + options_.rank + width_;
  std::vector<Sequence> out(S);
  if (state == nullptr) {
    fresh->resize(S * static_cast<size_t>(all));
    for (size_t s = 0; s < S; ++s) {
      float* at = fresh->data() + s * static_cast<size_t>(all);
      out[s] = {.fast = at, .sum = at + matrix, .pending = at + 2 * matrix};
    }
  } else {
    const auto fast = state->fixed(kFast), sum = state->fixed(kSum);
    const auto pending = state->fixed(kPending);
    for (size_t s = 0; s < S; ++s) {
      out[s] = {.fast = fast[s], .sum = sum[s], .pending = pending[s]};
    }
  }
  for (size_t s = 0; s < S; ++s) {
    out[s].row = batch.offsets[s];
    out[s].position = batch.starts[s];
    out[s].left = batch.length(static_cast<int64_t>(s));
  }
  return out;
}

// (N, R): rows of length one.
Tensor Adaptation::features(Context& ctx, const Tensor& h) const {
  const int64_t R = options_.rank;
  Tensor z = linear(ctx, h, directions_);
  for (int64_t i = 0; i < z.rows(); ++i) {
    float* row = z.f32() + i * z.row_stride();
    float squares = 0;
    for (int64_t j = 0; j < R; ++j) squares = std::fma(row[j], row[j], squares);
    const float unit = squares > 0 ? 1 / std::sqrt(squares) : 0;
    for (int64_t j = 0; j < R; ++j) row[j] *= unit;
  }
  return z;
}

// out <- h + z U over the tokens taken, (taken, D).
void Adaptation::correct(const Sequence& s, const Tensor& h, const Tensor& z, float* out) const {
  const int64_t D = width_, R = options_.rank;
  simd::gemm({.m = s.taken,
              .n = D,
              .k = R,
              .a_row = R,
              .a_col = 1,
              .b_row = D,
              .c_row = D,
              .start_row = h.row_stride()},
             z.f32() + s.row * R, s.fast, h.f32() + s.row * h.row_stride(), out);
}

// q = W^T p becomes s (q - W[target]).
void Adaptation::gradient(float* q, int32_t target) const {
  std::vector<float> row(static_cast<size_t>(width_));
  head_.row(target, row.data());
  for (int64_t j = 0; j < width_; ++j) q[j] = logit_scale_ * (q[j] - row[static_cast<size_t>(j)]);
}

// sum += z^T g over `count` tokens, each element one chain in the order of the tokens.
void Adaptation::add(const Sequence& s, int64_t count, const float* z, const float* g) const {
  const int64_t D = width_, R = options_.rank;
  simd::gemm(
      {.m = R, .n = D, .k = count, .a_row = 1, .a_col = R, .b_row = D, .c_row = D, .start_row = D},
      z, g, s.sum, s.sum);
}

// The last token's successor has come. Where that begins a mini-batch, the one before is complete.
void Adaptation::learn_pending(const Sequence& s, int32_t token) const {
  if (s.position == 0) return;
  const int64_t R = options_.rank;
  gradient(s.pending + R, token);
  add(s, 1, s.pending, s.pending + R);
  if (s.position % options_.batch != 0) return;
  for (int64_t i = 0; i < R * width_; ++i) {
    s.fast[i] = std::fma(-step_, s.sum[i], keep_ * s.fast[i]);
    s.sum[i] = 0;
  }
}

// q (taken, D) is W^T p of the tokens taken; all but the last know their successors.
void Adaptation::learn(const Sequence& s, std::span<const int32_t> tokens, const Tensor& z,
                       float* q) const {
  const int64_t D = width_, R = options_.rank, known = s.taken - 1;
  const float* of_z = z.f32() + s.row * R;
  for (int64_t i = 0; i < known; ++i) {
    gradient(q + i * D, tokens[static_cast<size_t>(s.row + i + 1)]);
  }
  add(s, known, of_z, q);
  std::copy_n(of_z + known * R, R, s.pending);
  std::copy_n(q + known * D, D, s.pending + R);
}

Tensor Adaptation::forward(Context& ctx, const Tensor& h, std::span<const int32_t> tokens,
                           const SequenceBatch& batch,
                           const std::optional<std::vector<int64_t>>& rows,
                           const LayerState* state) const {
  check(ctx.tape() == nullptr, "adapt: cannot be differentiated, want no tape");
  const int64_t N = h.rows();
  const Tensor z = features(ctx, h);
  std::vector<float> fresh;
  std::vector<Sequence> all = sequences(batch, state, &fresh);
  Tensor out = ctx.empty({rows ? std::ssize(*rows) : N, vocab_});
  // Where a row's logits go; -1: nobody asks.
  std::vector<int64_t> wanted(static_cast<size_t>(N), -1);
  for (int64_t i = 0; i < out.rows(); ++i) {
    wanted[static_cast<size_t>(rows ? (*rows)[static_cast<size_t>(i)] : i)] = i;
  }

  // A round takes every sequence to the end of its present mini-batch, all of them through the head
  // together.
  for (int64_t done = 0, count = 0; done < N; done += count) {
    count = 0;
    for (Sequence& s : all) {
      s.taken = std::min(options_.batch - s.position % options_.batch, s.left);
      count += s.taken;
    }
    Tensor corrected = ctx.empty({count, width_});
    float* to = corrected.f32();
    for (const Sequence& s : all) {
      if (s.taken == 0) continue;
      learn_pending(s, tokens[static_cast<size_t>(s.row)]);
      correct(s, h, z, to);
      to += s.taken * width_;
    }
    Tensor logits = linear(ctx, corrected, head_);  // (count, V)
    if (logit_scale_ != 1) logits = scale(ctx, logits, logit_scale_);
    const float* from = logits.f32();
    for (const Sequence& s : all) {
      for (int64_t i = 0; i < s.taken; ++i, from += vocab_) {
        const int64_t row = wanted[static_cast<size_t>(s.row + i)];
        if (row >= 0) std::copy_n(from, vocab_, out.f32() + row * vocab_);
      }
    }
    softmax_rows(ctx.threads(), logits);
    const Tensor q = linear(ctx, logits, head_transpose_);  // (count, D)
    float* of_q = q.f32();
    for (Sequence& s : all) {
      if (s.taken == 0) continue;
      learn(s, tokens, z, of_q);
      of_q += s.taken * width_;
      s.row += s.taken;
      s.position += s.taken;
      s.left -= s.taken;
    }
  }
  return out;
}

}  // namespace braid
