// Rows of a table read from its packed form, and the gradient of a table that is also the head.
#include <cmath>
#include <string>

#include "braid/ops/embedding/embedding.h"
#include "braid/ops/embedding/reference.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/linear/reference.h"
#include "tests/support/device.h"

namespace braid {
namespace {

using test::Complex;

const std::vector<int32_t> kIds = {3, 0, 69, 3, 31, 32, 3};

class Embedding : public test::DeviceAndDTypeTest {};

TEST_P(Embedding, ReadsTheRowsOfTheTable) {
  for (const int64_t d : {1, 2, 63, 65}) {
    Tensor plain = test::randn({70, d}, 1);
    if (dtype() == DType::kBF16) {
      for (int64_t i = 0; i < plain.count(); ++i)
        plain.f32()[i] = to_float(to_bf16(plain.f32()[i]));
    }
    const auto want = reference::embedding(kIds, d, test::values(plain));
    for (const bool trainable : {false, true}) {
      const Weight table =
          Weight::make(ctx(), plain, {.packed_dtype = dtype(), .trainable = trainable});
      EXPECT_EQ(read(embedding(ctx(), kIds, table)), want);
    }
  }
}

TEST_P(Embedding, TiedGradientMatchesComplexStep) {
  constexpr int64_t v = 70, d = 5;
  const auto m = static_cast<int64_t>(kIds.size());
  // Small integers: exact in bfloat16, so that only the sums differ.
  const auto whole = [](Shape shape, uint64_t seed) {
    Tensor x = test::randn(shape, seed, 3.0f);
    for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] = std::round(x.f32()[i]);
    return x;
  };
  Tensor plain = whole({v, d}, 1);
  const Tensor dy = whole({m, v}, 2);
  std::vector<Tensor> got;
  for (const int threads : {1, 2, 3}) {
    Context other({.device = ctx().device(), .threads = threads, .poison = true});
    Tape tape;
    plain.set_grad_id(0);
    tape.watch(plain);
    Context recorded = other.with_tape(&tape);
    const Weight table = Weight::make(other, plain, {.packed_dtype = dtype(), .trainable = true});
    const Tensor h = embedding(recorded, kIds, table);
    tape.backward(other, {linear(recorded, h, table)}, {to_device(dy)});
    got.push_back(to_host(tape.grad(plain)));
    EXPECT_TRUE(test::same_bits(got[0], got.back()));
  }
  const auto want = test::complex_step(test::values(plain), [&](const std::vector<Complex>& w) {
    const auto h = reference::embedding(kIds, d, w);
    return test::dot(reference::linear(m, v, d, h, w, {}), test::values(dy));
  });
  test::expect_close(got[0], want, test::tolerance(DType::kF32, v + m), "dtable");
}

TEST_P(Embedding, GradientAddsEveryOccurrenceOfAnId) {
  constexpr int64_t v = 5, d = 37, m = 1500;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < m; ++i) ids.push_back(static_cast<int32_t>(i * i % 7 % v));
  const Tensor dy = test::randn({m, d}, 3);
  std::vector<double> want(v * d);
  for (int64_t i = 0; i < m * d; ++i) {
    want[static_cast<size_t>(ids[static_cast<size_t>(i / d)] * d + i % d)] += dy.f32()[i];
  }
  Tape tape;
  Tensor plain = test::randn({v, d}, 4);
  tape.watch(plain);
  Context recorded = ctx().with_tape(&tape);
  const Weight table = Weight::make(ctx(), plain, {.packed_dtype = dtype(), .trainable = true});
  tape.backward(ctx(), {embedding(recorded, ids, table)}, {to_device(dy, 3)});
  expect_near(tape.grad(plain), want, test::tolerance(DType::kF32, m), "dtable");
}

INSTANTIATE_TEST_SUITE_P(Devices, Embedding, test::kDevicesAndDTypes, test::device_and_dtype_name);

TEST(EmbeddingErrors, AnIdOutsideTheVocabularyIsNamed) {
  Context ctx({.threads = 1});
  const Weight table = Weight::make(ctx, test::randn({70, 4}, 1));
  for (const int32_t bad : {-1, 70}) {
    try {
      embedding(ctx, std::vector<int32_t>{1, bad}, table);
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(bad)), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("70"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace braid
