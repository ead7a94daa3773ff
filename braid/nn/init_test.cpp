// Goal: init_orthogonal gives orthogonal matrices of every shape. Method: their products with
// themselves.

#include "braid/nn/init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace braid {
namespace {

TEST(InitOrthogonal, RowsOrColumnsAreOrthonormal) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {1, 7}, {5, 1}, {8, 8}, {13, 40}, {64, 17}};
  for (const auto& shape : kShapes) {
    const int64_t rows = shape[0], columns = shape[1];
    std::vector<float> w(static_cast<size_t>(rows * columns));
    init_orthogonal(rows, columns, 0.5)(w, Rng(3));
    const bool tall = rows > columns;
    const int64_t count = tall ? columns : rows, length = tall ? rows : columns;
    const auto at = [&](int64_t v, int64_t i) {
      return static_cast<double>(w[static_cast<size_t>(tall ? i * columns + v : v * columns + i)]);
    };
    for (int64_t u = 0; u < count; ++u) {
      for (int64_t v = 0; v <= u; ++v) {
        double sum = 0;
        for (int64_t i = 0; i < length; ++i) sum += at(u, i) * at(v, i);
        EXPECT_NEAR(sum, u == v ? 0.25 : 0, 1e-6) << rows << " x " << columns;
      }
    }
  }
}

TEST(InitOrthogonal, FollowsTheGenerator) {
  std::vector<float> a(64), b(64), c(64);
  init_orthogonal(8, 8, 1)(a, Rng(3));
  init_orthogonal(8, 8, 1)(b, Rng(3));
  init_orthogonal(8, 8, 1)(c, Rng(4));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

}  // namespace
}  // namespace braid
