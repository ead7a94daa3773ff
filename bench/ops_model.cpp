// Ops at the ends of a model and of its training step, and those that only move values.

#include <fmt/core.h>

#include <algorithm>

#include "bench/ops.h"
#include "braid/core/rng.h"
#include "braid/ops/adamw/adamw.h"
#include "braid/ops/adamw/cases.h"
#include "braid/ops/adamw/reference.h"
#include "braid/ops/cross_entropy/cases.h"
#include "braid/ops/cross_entropy/cross_entropy.h"
#include "braid/ops/cross_entropy/reference.h"
#include "braid/ops/embedding/cases.h"
#include "braid/ops/embedding/embedding.h"
#include "braid/ops/embedding/reference.h"
#include "braid/ops/lrpe/cases.h"
#include "braid/ops/lrpe/lrpe.h"
#include "braid/ops/lrpe/reference.h"
#include "braid/ops/rope/cases.h"
#include "braid/ops/rope/reference.h"
#include "braid/ops/rope/rope.h"
#include "braid/ops/view/cases.h"
#include "braid/ops/view/view.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;
using Values = std::vector<double>;

std::vector<int32_t> random_ids(int64_t count, int64_t below) {
  const Rng rng(9);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(
        static_cast<int32_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(below))));
  }
  return ids;
}

}  // namespace

void adamw_cases(Context& ctx, const Emit& emit) {
  for (const int64_t n : cases::kAdamWBench) {
    const AdamWOptions options{.step = 3};
    const Inputs start = {random({n}, 1), random({n}, 2), random({n}, 3), ctx.zeros({n})};
    // The op overwrites its operands, so it runs on copies.
    const auto fresh = [start] {
      Inputs copies;
      for (const Tensor& x : start) {
        copies.push_back(host_tensor(std::vector<float>(x.f32(), x.f32() + x.count()), x.shape()));
      }
      return copies;
    };
    emit({.size = fmt::format("{} parameters", n),
          .inputs = fresh(),
          .run =
              [options](Context& c, const Inputs& in) {
                adamw(c, in[0], in[1], in[2], in[3], options);
                return in[0];
              },
          .reference =
              [start, options, count = std::min<int64_t>(n, 4096)] {
                Values p = rows(start[0], 0, count), m = rows(start[2], 0, count);
                Values v = rows(start[3], 0, count);
                reference::adamw(p, rows(start[1], 0, count), m, v, options);
                return p;
              },
          .bytes = bytes_of({7 * n}),
          .flops = 15.0 * static_cast<double>(n),
          .differentiable = false});
  }
}

void cross_entropy_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kCrossEntropyBench) {
    const int64_t n = shape.rows * shape.classes;
    const auto targets = random_ids(shape.rows, shape.classes);
    const Inputs inputs = {random({shape.rows, shape.classes}, 1)};
    emit({.size = fmt::format("{} x {} classes", shape.rows, shape.classes),
          .inputs = inputs,
          .run = [targets](
                     Context& ctx,
                     const Inputs& in) { return softmax_cross_entropy(ctx, in[0], targets).loss; },
          .reference =
              [inputs, targets] {
                const Values losses = reference::cross_entropy(all(inputs[0]), targets);
                double sum = 0;
                for (const double loss : losses) sum += loss;
                return Values{sum / static_cast<double>(losses.size())};
              },
          .terms = shape.classes,
          .bytes = bytes_of({n}),
          .flops = 4.0 * static_cast<double>(n)});
  }
}

void embedding_cases(Context& ctx, const Emit& emit) {
  for (const auto& shape : cases::kEmbeddingBench) {
    const auto ids = random_ids(shape.rows, shape.vocab);
    const Tensor table = random({shape.vocab, shape.width}, 1);
    const Weight weight = Weight::make(ctx, table, {.packed_dtype = DType::kF32});
    emit({.size = fmt::format("{} of {} x {}", shape.rows, shape.vocab, shape.width),
          .inputs = {},
          .run = [ids, weight](Context& c, const Inputs&) { return embedding(c, ids, weight); },
          .reference =
              [ids, table] {
                Values y;
                for (size_t i = 0; i < std::min<size_t>(8, ids.size()); ++i) {
                  const Values row = rows(table, ids[i], 1);
                  y.insert(y.end(), row.begin(), row.end());
                }
                return y;
              },
          .bytes = bytes_of({2 * shape.rows * shape.width}),
          .differentiable = false});
  }
}

void lrpe_cases(Context&, const Emit& emit) {
  for (const auto& [tokens, heads, dim] : cases::kLrpeBench) {
    const int64_t n = tokens * heads * dim, checked = std::min(kCheckedRows, tokens);
    const Inputs inputs = {random({tokens, heads * dim}, 1), random({heads, dim}, 2)};
    emit({.size = fmt::format("{} tokens, {} heads of {}", tokens, heads, dim),
          .inputs = inputs,
          .run = [batch = SequenceBatch::single(tokens)](
                     Context& c, const Inputs& in) { return lrpe(c, in[0], in[1], batch); },
          .reference =
              [inputs, checked, dim = dim] {
                std::vector<int64_t> positions;
                for (int64_t t = 0; t < checked; ++t) positions.push_back(t);
                return reference::lrpe(rows(inputs[0], 0, checked), all(inputs[1]), positions,
                                       static_cast<size_t>(dim));
              },
          .bytes = bytes_of({3 * n}),
          .flops = 5.0 * static_cast<double>(n)});
  }
}

void rope_cases(Context& ctx, const Emit& emit) {
  for (const RopeCase& a : kRopeBench) {
    const SequenceBatch batch = SequenceBatch::single(a.tokens);
    const RopeOptions options{.rotary_dim = a.rotary_dim, .interleaved = a.interleaved};
    const RopeTable table = make_rope_table(options, a.tokens);
    const RopeAngles angles = rope_angles(ctx, table, batch);
    const int64_t n = a.tokens * a.heads * a.head_dim;
    const Inputs inputs = {random({a.tokens, a.heads * a.head_dim}, 1)};
    emit({.size = fmt::format("{} tokens, {} heads of {}", a.tokens, a.heads, a.head_dim),
          .inputs = inputs,
          .run = [angles, heads = a.heads](
                     Context& c, const Inputs& in) { return rope(c, in[0], heads, angles); },
          .reference =
              [inputs, table, a] {
                Values y;
                for (int64_t t = 0; t < std::min(kCheckedRows, a.tokens); ++t) {
                  const Values row = rows(inputs[0], t, 1);
                  for (auto head = row.begin(); head < row.end(); head += a.head_dim) {
                    const Values turned =
                        reference::rope(Values(head, head + a.head_dim), t, table.inv_freq,
                                        table.attention_factor, a.interleaved);
                    y.insert(y.end(), turned.begin(), turned.end());
                  }
                }
                return y;
              },
          .bytes = bytes_of({2 * n, a.tokens * a.rotary_dim}),
          .flops = 3.0 * static_cast<double>(a.tokens * a.heads * a.rotary_dim)});
  }
}

void view_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kGatherRowsBench) {
    std::vector<int64_t> picked;
    for (const int32_t id : random_ids(shape.picked, shape.rows)) picked.push_back(id);
    std::ranges::sort(picked);
    picked.erase(std::unique(picked.begin(), picked.end()), picked.end());
    const Inputs inputs = {random({shape.rows, shape.width}, 1)};
    const int64_t moved = std::ssize(picked) * shape.width;
    emit({.size = fmt::format("gather {} of {} x {}", picked.size(), shape.rows, shape.width),
          .inputs = inputs,
          .run = [picked](Context& ctx,
                          const Inputs& in) { return gather_rows(ctx, in[0], picked); },
          .reference =
              [inputs, picked] {
                Values y;
                for (size_t i = 0; i < std::min<size_t>(8, picked.size()); ++i) {
                  const Values row = rows(inputs[0], picked[i], 1);
                  y.insert(y.end(), row.begin(), row.end());
                }
                return y;
              },
          .bytes = bytes_of({2 * moved})});
  }
}

}  // namespace braid::bench
