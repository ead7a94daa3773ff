#pragma once

// What every numeric test shares: random inputs, the one table of tolerances, comparison against a
// reference, gradients by complex step.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/rng.h"
#include "braid/core/tensor.h"

namespace braid::test {

/// Rounding of one operation in `dtype`, times sqrt(length) for a random walk over a sum of that
/// length, times one constant for the number of roundings per term.
inline double tolerance(DType dtype, int64_t length) {
  constexpr double kConstant = 16.0;
  const double eps = dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kBF16 ? 0x1p-9 : 0x1p-53;
  return eps * std::sqrt(static_cast<double>(std::max<int64_t>(length, 1))) * kConstant;
}

inline Tensor randn(Shape shape, uint64_t seed, float scale = 1.0f) {
  const Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * rng.normal(i);
  return host_tensor(std::move(values), shape);
}

/// The elements in row-major order, strided rows included.
inline std::vector<double> values(const Tensor& x) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(x.count()));
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.row_count(); ++j) {
      const int64_t at = i * x.row_stride() + j;
      out.push_back(x.dtype() == DType::kBF16 ? to_float(x.data<BF16>()[at]) : x.f32()[at]);
    }
  }
  return out;
}

template <class T>
std::vector<T> as(const std::vector<double>& x) {
  return {x.begin(), x.end()};
}

/// max |got - want| / max |want|; infinite where sizes differ or a value is not finite.
inline double max_error(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double scale = 0, error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    scale = std::max(scale, std::abs(want[i]));
    error = std::max(error, std::abs(got[i] - want[i]));
  }
  return error == 0 ? 0 : error / std::max(scale, 1e-30);
}

/// Passes when `got` is within `tol` of `want`, and checks the check: with one element moved by
/// four tolerances it must fail.
inline void expect_close(const std::vector<double>& got, const std::vector<double>& want,
                         double tol, const char* what) {
  EXPECT_LE(max_error(got, want), tol) << what;
  if (want.empty()) return;
  double scale = 1e-30;
  for (const double v : want) scale = std::max(scale, std::abs(v));
  std::vector<double> moved = got;
  moved[moved.size() / 2] += 4 * tol * scale;
  EXPECT_GT(max_error(moved, want), tol) << what << ": the comparison cannot fail";
}
inline void expect_close(const Tensor& got, const std::vector<double>& want, double tol,
                         const char* what) {
  ASSERT_TRUE(got.defined()) << what;
  expect_close(values(got), want, tol, what);
}
inline void expect_close(const Tensor& got, const Tensor& want, double tol, const char* what) {
  ASSERT_TRUE(want.defined()) << what;
  expect_close(got, values(want), tol, what);
}

/// The same bits, element by element.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && values(a) == values(b);
}

using Complex = std::complex<double>;

/// d loss / d x_i = Im loss(x + i h e_i) / h, exact to rounding because nothing is subtracted.
/// `loss` maps std::vector<Complex> to Complex; branches and maxima must look at real parts.
template <class Loss>
std::vector<double> complex_step(const std::vector<double>& x, Loss&& loss) {
  constexpr double h = 1e-50;
  std::vector<Complex> z(x.begin(), x.end());
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    z[i] = Complex(x[i], h);
    gradient[i] = loss(z).imag() / h;
    z[i] = x[i];
  }
  return gradient;
}

/// sum_i a_i b_i over a complex and a real vector: the loss <y, dy> of a vjp test.
template <class T>
T dot(const std::vector<T>& y, const std::vector<double>& dy) {
  T sum{};
  for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
  return sum;
}

}  // namespace braid::test
