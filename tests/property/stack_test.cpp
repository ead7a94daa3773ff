// Goal: training on a sequence in pieces, the state handed on, is training on the whole; cut at a
// piece, it is what it is without the pieces before. Method: a stack's loss and gradients over
// three pieces of two sequences against those of one call, with and without recomputation.

#include "braid/model/stack.h"

#include <gtest/gtest.h>

#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"
#include "tests/support/small_model.h"

namespace braid::test {
namespace {

constexpr int64_t kPieces[] = {33, 1, 30};
constexpr int64_t kLength = 64, kSequences = 2, kVocab = SmallModel::kVocab;

struct Pass {
  std::vector<Tensor> logits;  // of each piece, (2 n, V)
  Tape::Sinks sinks;
};

class Carried : public ::testing::TestWithParam<bool> {
 protected:
  Carried() : stack_(make("(mamba2:state=16,head=16|mamba2:state=8,head=8 swiglu)x2")) {}

  std::unique_ptr<Stack> make(const std::string& spec) {
    auto stack = std::make_unique<Stack>(
        SmallModel::config(spec),
        StackOptions{.trainable = true, .matrix_dtype = DType::kF32, .recompute = GetParam()});
    stack->initialize(ctx_, Rng(4));
    return stack;
  }
  // The same with matrices that start at zero drawn too: they hide what lies before them.
  std::unique_ptr<Stack> make_drawn(const std::string& spec) {
    auto stack = make(spec);
    for (const auto& [name, p] : stack->parameters()) {
      if (p->matrix) p->init = init_normal(0.1f);
    }
    stack->initialize(ctx_, Rng(4));
    return stack;
  }

  static SequenceBatch batch(int64_t at, int64_t n) {
    SequenceBatch batch;
    for (int64_t s = 0; s < kSequences; ++s) batch.add(n, at);
    return batch;
  }
  // Rows [at, at + n) of each sequence.
  template <class T>
  static std::vector<T> rows(const std::vector<T>& all, int64_t at, int64_t n, int64_t width) {
    std::vector<T> out;
    for (int64_t s = 0; s < kSequences; ++s) {
      const auto first = all.begin() + (s * kLength + at) * width;
      out.insert(out.end(), first, first + n * width);
    }
    return out;
  }

  Pass run(std::span<const int64_t> pieces, bool truncate) {
    Pass out;
    for (const auto& [name, p] : stack_->parameters()) {
      out.sinks[p->value.grad_id()] = ctx_.zeros(p->shape);
    }
    Tape tape(&out.sinks);
    Context taped = ctx_.with_tape(&tape);
    std::vector<SlotTensors> carried;
    std::vector<Tensor> dys;
    int64_t at = 0;
    for (const int64_t n : pieces) {
      out.logits.push_back(
          stack_->forward(taped, rows(tokens_, at, n, 1), batch(at, n), {.carried = &carried}));
      dys.push_back(host_tensor(rows(dy_, at, n, kVocab), {kSequences * n, kVocab}));
      for (SlotTensors& sublayer : carried) {
        sublayer.initial = std::exchange(sublayer.last, {});
        for (Tensor& x : sublayer.initial) x.set_grad_id(truncate ? 0 : x.grad_id());
      }
      at += n;
    }
    tape.backward(ctx_, out.logits, dys);
    return out;
  }
  // The largest error of any parameter's gradient.
  double gradient_error(const Pass& got, const Pass& want) {
    double error = 0;
    for (const auto& [id, sink] : want.sinks) {
      error = std::max(error, max_error(values(got.sinks.at(id)), values(sink)));
    }
    return error;
  }

  void pieces_have_the_gradients_of_the_whole();

  Context ctx_{{.threads = 2, .poison = true}};
  std::unique_ptr<Stack> stack_;
  std::vector<int32_t> tokens_ = random_tokens(kSequences * kLength, 1);
  std::vector<float> dy_ = as<float>(values(randn({kSequences * kLength, kVocab}, 2)));
};

void Carried::pieces_have_the_gradients_of_the_whole() {
  const int64_t whole[] = {kLength};
  const Pass want = run(whole, false), got = run(kPieces, false);
  const std::vector<float> logits = as<float>(values(want.logits[0]));
  int64_t at = 0;
  for (const Tensor& piece : got.logits) {
    const int64_t n = piece.rows() / kSequences;
    expect_close(piece, values(host_tensor(rows(logits, at, n, kVocab), {kSequences * n, kVocab})),
                 tolerance(DType::kF32, kLength), "logits");
    at += n;
  }
  // Sums over all tokens of terms of either sign: half the digits may go.
  constexpr double kBound = 0x1p-12;
  EXPECT_LE(gradient_error(got, want), kBound);
  EXPECT_GT(gradient_error(run(kPieces, true), want), 16 * kBound) << "cut, yet the same";
}

TEST_P(Carried, PiecesHaveTheGradientsOfTheWhole) { pieces_have_the_gradients_of_the_whole(); }

TEST_P(Carried, SoHaveLayersThatShareValues) {
  stack_ = make_drawn("(rwkv7:head=16,w=8,a=8,v=8,g=8 rwkv7_cmix:hidden=96)x2");
  pieces_have_the_gradients_of_the_whole();
}

TEST_P(Carried, IsRefusedWhereARowIsKeptAToken) {
  stack_ = make("mamba2:state=16,head=16 attn:heads=4");
  std::vector<SlotTensors> carried;
  expect_refused([&] { stack_->forward(ctx_, tokens_, batch(0, kLength), {.carried = &carried}); },
                 "keeps a row a token");
  carried.resize(7);
  expect_refused([&] { stack_->forward(ctx_, tokens_, batch(0, kLength), {.carried = &carried}); },
                 "carried tensors of 7 sublayers, want 2");
  State state = stack_->make_state(ctx_);
  State* states[] = {&state};
  carried.resize(2);
  expect_refused(
      [&] {
        stack_->forward(ctx_, tokens_, batch(0, kLength), {.states = states, .carried = &carried});
      },
      "want one of them");
}

INSTANTIATE_TEST_SUITE_P(Recompute, Carried, ::testing::Bool(), [](const auto& entry) {
  return entry.param ? std::string("on") : std::string("off");
});

}  // namespace
}  // namespace braid::test
