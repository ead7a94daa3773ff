// The single-thread product against a double-precision sum, with every mixture of strides, and the
// promise that an element's value depends on its row and column alone.
#include "braid/simd/gemm.h"

#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

std::vector<float> random(int64_t count, uint64_t seed) {
  const Tensor x = test::randn({count}, seed);
  return {x.f32(), x.f32() + count};
}

struct Case {
  int64_t m, n, k;
};
class Gemm : public ::testing::TestWithParam<Case> {};

void check_against_double_sum(const Case& shape) {
  const auto [m, n, k] = shape;
  const std::vector<float> a = random((m + 3) * (k + 3), 1), b = random((k + 1) * (n + 5), 2),
                           bias = random(n, 3), old = random(m * (n + 2), 4);
  for (const bool transposed : {false, true}) {
    for (const int start : {0, 1, 2}) {  // none, a bias, accumulate
      const simd::GemmDims dims{.m = m,
                                .n = n,
                                .k = k,
                                .a_row = transposed ? 1 : k + 3,
                                .a_col = transposed ? m + 3 : 1,
                                .b_row = n + 5,
                                .c_row = n + 2,
                                .start_row = start == 2 ? n + 2 : 0};
      std::vector<float> c = old;
      simd::gemm(dims, a.data(), b.data(),
                 start == 0   ? nullptr
                 : start == 1 ? bias.data()
                              : c.data(),
                 c.data());
      std::vector<double> got, want;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n + 2; ++j) {
          const auto at = static_cast<size_t>(i * (n + 2) + j);
          got.push_back(c[at]);
          if (j >= n) {  // between rows nothing may change
            want.push_back(old[at]);
            continue;
          }
          double sum = start == 0 ? 0 : start == 1 ? bias[static_cast<size_t>(j)] : old[at];
          for (int64_t p = 0; p < k; ++p) {
            sum += static_cast<double>(a[static_cast<size_t>(i * dims.a_row + p * dims.a_col)]) *
                   b[static_cast<size_t>(p * dims.b_row + j)];
          }
          want.push_back(sum);
        }
      }
      test::expect_close(got, want, test::tolerance(DType::kF32, k + 1), "gemm");
    }
  }
}

TEST_P(Gemm, MatchesTheDoubleSum) {
  test::on_every_target([] { check_against_double_sum(GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(Sizes, Gemm,
                         ::testing::Values(Case{1, 1, 0}, Case{1, 1, 1}, Case{2, 31, 63},
                                           Case{13, 32, 65}, Case{14, 33, 64}, Case{15, 100, 7},
                                           Case{29, 48, 768}, Case{65, 17, 2}));

TEST(Gemm, RowsDoNotDependOnEachOtherNorOnTheCut) {
  constexpr int64_t m = 29, n = 45, k = 130;
  const std::vector<float> a = random(m * k, 1), b = random(k * n, 2);
  test::on_every_target([&] {
    simd::GemmDims dims{.m = m, .n = n, .k = k, .a_row = k, .a_col = 1, .b_row = n, .c_row = n};
    std::vector<float> whole(m * n), parts(m * n);
    simd::gemm(dims, a.data(), b.data(), nullptr, whole.data());
    dims.m = 1;
    dims.start_row = n;
    for (int64_t i = 0; i < m; ++i) {  // each row alone, k in two pieces, columns in two pieces
      for (const int64_t j : {0, 20}) {
        dims.n = j == 0 ? 20 : n - 20;
        dims.k = 50;
        float* c = parts.data() + i * n + j;
        simd::gemm(dims, a.data() + i * k, b.data() + j, nullptr, c);
        dims.k = k - 50;
        simd::gemm(dims, a.data() + i * k + 50, b.data() + 50 * n + j, c, c);
      }
    }
    EXPECT_EQ(whole, parts);
  });
}

TEST(Transpose, MovesEveryElementAndNoOther) {
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{37, 21}, {14, 16}, {3, 50}, {4, 4}, {50, 3}, {5, 19}, {1, 1}}) {
    const std::vector<float> x = random(rows * 55, 1);
    test::on_every_target([&, n = rows, d = columns] {
      std::vector<float> y(static_cast<size_t>(d * 60), -9.0f), want = y;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < d; ++j) {
          want[static_cast<size_t>(j * 60 + i)] = x[static_cast<size_t>(i * 55 + j)];
        }
      }
      simd::transpose(n, d, x.data(), 55, y.data(), 60);
      EXPECT_EQ(y, want);
    });
  }
}

}  // namespace
}  // namespace braid
