#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid::bench {

/// One tensor or several; the first is what is checked.
struct Outputs {
  std::vector<Tensor> tensors;
  Outputs(Tensor only) : tensors{std::move(only)} {}                     // NOLINT: implicit
  Outputs(std::vector<Tensor> several) : tensors(std::move(several)) {}  // NOLINT: implicit
};

/// An op at one size.
struct OpCase {
  std::string size;
  std::vector<Tensor> inputs;  // what a gradient flows into
  std::function<Outputs(Context&, const std::vector<Tensor>& inputs)> run;
  /// The first values of the result, row by row, as the op's reference computes them.
  std::function<std::vector<double>()> reference;
  int64_t terms = 1;  // of the sums behind a value: bounds its rounding
  double bytes = 0;   // of one call: at least read and written
  double flops = 0;   // a function such as exp counts one
  bool differentiable = true;
  bool token_loop = false;  // its vjp has a recurrent form too (Form::kRecurrent), timed beside it
};

/// Hands on the cases of an op one after another, so that one at a time is in memory.
using Emit = std::function<void(const OpCase&)>;

/// A line of the table in op_bench.cpp; the cases are made by the files ops_*.cpp.
struct OpBench {
  std::string_view name;
  void (*cases)(Context& ctx, const Emit& emit);
};
std::span<const OpBench> op_benches();
/// Throws Error(kUsage), naming the ops there are, for an unknown one.
const OpBench& find_op(std::string_view name);

/// Checks each case of an op against its reference, then prints its speed beside the ceilings
/// measured in the same rounds. Throws Error(kUnsupported) for a result that is wrong.
void bench_op(Context& ctx, std::string_view name);

// For the files that make cases.

/// Random normal values.
Tensor random(Shape shape, uint64_t seed, float scale = 1.0f);
/// Rows [begin, begin + count) of a contiguous tensor.
std::vector<double> rows(const Tensor& x, int64_t begin, int64_t count);
inline std::vector<double> all(const Tensor& x) { return rows(x, 0, x.rows()); }
/// Of f32.
double bytes_of(std::initializer_list<int64_t> counts);

/// What is checked of a packed batch: the beginnings of its sequences, `count` rows each, up to
/// about kCheckedRows in all. All ops over sequences are causal, so a beginning stands alone.
inline constexpr int64_t kCheckedRows = 130;
struct Checked {
  int64_t sequence, begin, count;
};
std::vector<Checked> checked_rows(const SequenceBatch& batch);
/// A reference of those rows, from what `of` makes of each sequence's.
std::function<std::vector<double>()> by_sequence(
    const SequenceBatch& batch, std::function<std::vector<double>(const Checked&)> of);
/// A state to start from, for decode; absent for a long piece, which starts from nothing.
Tensor initial_state(const SequenceBatch& batch, Shape shape);
/// What of it belongs to one sequence, or nothing.
std::vector<double> state_of(const Tensor& initial, int64_t sequence);

SequenceBatch packed(const std::vector<int64_t>& lengths);
std::string describe(const SequenceBatch& batch);  // "2048 tokens" or "16 x 1 token"

}  // namespace braid::bench
