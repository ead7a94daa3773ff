#pragma once

// What the tests of every recurrence share: its forms, contexts that reveal stale memory, and the
// law that a token's bits depend on nothing but what came before it in its sequence.

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <span>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/core/tape.h"
#include "tests/support/numeric.h"

namespace braid::test {

inline constexpr Form kForms[] = {Form::kRecurrent, Form::kChunked};

inline Context make_context(int threads = 2, Form form = Form::kAuto) {
  return Context({.threads = threads, .poison = true}).with_form(form);
}

/// The reference over a batch, sequence after sequence. `one(s)` gives a struct of y and
/// final_state.
template <class One>
auto reference_of_batch(const SequenceBatch& batch, One&& one) {
  decltype(one(int64_t{0})) all;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const auto part = one(s);
    all.y.insert(all.y.end(), part.y.begin(), part.y.end());
    all.final_state.insert(all.final_state.end(), part.final_state.begin(), part.final_state.end());
  }
  return all;
}

/// Every form is as near to `want`, the reference's, as `tol` says. `run(ctx)` is the op.
template <class Want, class Run>
void expect_every_form(const Want& want, double tol, const char* name, Run&& run) {
  for (const Form form : kForms) {
    Context ctx = make_context(2, form);
    const auto got = run(ctx);
    expect_close(got.y, want.y, tol, name);
    expect_close(got.final_state, want.final_state, tol, name);
  }
}

/// Three threads give the bits of one, and each sequence alone, in pieces of several lengths
/// through a state that is overwritten, gives the bits it has in the batch.
///
///   run(ctx)                                 the op over the batch: a struct of y and final_state
///   piece(ctx, begin, end, states, single)   its in-place twin over rows [begin, end): y
template <class Run, class Piece>
void expect_same_bits_however_cut(const Tensor& initial, const SequenceBatch& batch, Run&& run,
                                  Piece&& piece, const char* name) {
  SCOPED_TRACE(name);
  Context one = make_context(1), three = make_context(3);
  const auto want = run(one);
  const auto threaded = run(three);
  EXPECT_TRUE(same_bits(threaded.y, want.y));
  EXPECT_TRUE(same_bits(threaded.final_state, want.final_state));
  const int64_t size = initial.row_count();
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t first = batch.offsets[static_cast<size_t>(s)], length = batch.length(s);
    for (const int64_t step : {int64_t{1}, int64_t{5}, int64_t{17}, length / 3 + 1}) {
      std::vector<float> state(initial.f32() + s * size, initial.f32() + (s + 1) * size);
      float* const states[] = {state.data()};
      for (int64_t t = 0; t < length; t += step) {
        const int64_t end = std::min(length, t + step);
        const Tensor y =
            piece(three, first + t, first + end, states, SequenceBatch::single(end - t, t));
        ASSERT_TRUE(same_bits(y, want.y.slice_rows(first + t, first + end)));
      }
      const Tensor last = want.final_state.slice_rows(s, s + 1);
      EXPECT_TRUE(same_bits(host_tensor(state, last.shape()), last));
    }
  }
}

/// The gradients of dy . y + d_final . final_state at `leaves`, by the tape; an absent leaf has
/// none. `run(ctx)` is the op: a struct of y and final_state.
template <class Run>
std::vector<Tensor> tape_gradients(Context& base, std::span<Tensor* const> leaves, const Tensor& dy,
                                   const Tensor& d_final, Run&& run) {
  Tape tape;
  Context ctx = base.with_tape(&tape);
  for (Tensor* leaf : leaves) {
    if (leaf->defined()) tape.watch(*leaf);
  }
  const auto out = run(ctx);
  tape.backward(base, {out.y, out.final_state}, {dy, d_final});
  std::vector<Tensor> grads;
  for (const Tensor* leaf : leaves) grads.push_back(leaf->defined() ? tape.grad(*leaf) : Tensor());
  return grads;
}

/// `packed`, the gradients of a batch, have the bits that each sequence's have alone. `alone(s,
/// begin, end)` gives those of sequence s, its rows [begin, end). The inputs `rows` have a row for
/// each token, the last one for each sequence; the others are sums over all of them and left out.
template <class Alone>
void expect_gradients_of_each(const SequenceBatch& batch, const std::vector<Tensor>& packed,
                              std::initializer_list<size_t> rows, Alone&& alone) {
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t begin = batch.offsets[static_cast<size_t>(s)], end = begin + batch.length(s);
    const std::vector<Tensor> got = alone(s, begin, end);
    ASSERT_EQ(got.size(), packed.size());
    for (const size_t j : rows) {
      EXPECT_TRUE(same_bits(got[j], packed[j].slice_rows(begin, end))) << "input " << j;
    }
    EXPECT_TRUE(same_bits(got.back(), packed.back().slice_rows(s, s + 1))) << "sequence " << s;
  }
}

/// The gradient at one input of the reference, by complex step. `run()` evaluates it on that input.
template <class Run>
std::vector<double> reference_gradient(std::vector<Complex>& field, const Tensor& dy,
                                       const Tensor& d_final, Run&& run) {
  std::vector<double> at;
  for (const Complex& v : field) at.push_back(v.real());
  const auto dys = values(dy), d_finals = values(d_final);
  return complex_step(at, [&](const std::vector<Complex>& z) {
    field = z;
    const auto out = run();
    return dot(out.y, dys) + dot(out.final_state, d_finals);
  });
}

}  // namespace braid::test
