// Bound by the sine and cosine of every channel.

#include <algorithm>
#include <numbers>

#include "braid/core/thread_pool.h"
#include "braid/ops/lrpe/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/lrpe/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

// The angles of one token within half a turn of zero; adding 1.5 * 2^52 rounds to a whole number.
void lrpe_angles(int64_t count, double position, const float* theta, float* angles) {
  constexpr double kTurn = 2 * std::numbers::pi, kMagic = 6755399441055744.0;
  for (int64_t j = 0; j < count; ++j) {
    const double angle = static_cast<double>(theta[j]) * position;
    const double turns = (angle / kTurn + kMagic) - kMagic;
    angles[j] = static_cast<float>(angle - turns * kTurn);
  }
}

void lrpe_row(const LrpeDims& dims, int64_t t, const float* x, const float* theta, float* angles,
              float* y) {
  const vec::F32Tag d;
  lrpe_angles(dims.heads * dims.dim, static_cast<double>(dims.positions[t]), theta, angles);
  for (int64_t h = 0; h < dims.heads; ++h) {
    const float* from = x + t * dims.x_stride + h * dims.dim;
    float* to = y + (t * dims.heads + h) * 2 * dims.dim;
    vec::for_each_vector(static_cast<size_t>(dims.dim), [&](auto at, size_t j) {
      const vec::F32 v = at.load(from + j), angle = at.load(angles + h * dims.dim + j);
      at.store(hn::Mul(v, hn::Cos(d, angle)), to + j);
      at.store(hn::Mul(v, hn::Sin(d, angle)), to + dims.dim + j);
    });
  }
}

// Token t: dx, and its share of d theta is added to `sum`.
void lrpe_row_vjp(const LrpeDims& dims, int64_t t, const float* x, const float* theta,
                  const float* dy, float* angles, float* sum, float* dx) {
  const vec::F32Tag d;
  const auto position = static_cast<double>(dims.positions[t]);
  lrpe_angles(dims.heads * dims.dim, position, theta, angles);
  const vec::F32 p = hn::Set(d, static_cast<float>(position));
  for (int64_t h = 0; h < dims.heads; ++h) {
    const int64_t head = h * dims.dim;
    const float* of_cos = dy + t * dims.dy_stride + 2 * head;
    const float* of_sin = of_cos + dims.dim;
    vec::for_each_vector(static_cast<size_t>(dims.dim), [&](auto at, size_t j) {
      const vec::F32 v = at.load(x + t * dims.x_stride + head + j);
      const vec::F32 angle = at.load(angles + head + j);
      const vec::F32 c = hn::Cos(d, angle), s = hn::Sin(d, angle);
      const vec::F32 g = at.load(of_cos + j), k = at.load(of_sin + j);
      at.store(hn::MulAdd(g, c, hn::Mul(k, s)), dx + (t * dims.heads * dims.dim) + head + j);
      const vec::F32 turned = hn::NegMulAdd(g, s, hn::Mul(k, c));
      at.store(hn::MulAdd(hn::Mul(p, v), turned, at.load(sum + head + j)), sum + head + j);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(lrpe_row);
HWY_EXPORT(lrpe_row_vjp);

void lrpe(ThreadPool& threads, const LrpeDims& dims, const float* x, const float* theta,
          float* scratch, float* y) {
  const int64_t width = dims.heads * dims.dim;
  threads.parallel_for(
      dims.tokens, 1 + 2048 / (width + 1), [&](int64_t begin, int64_t end, int worker) {
        for (int64_t t = begin; t < end; ++t) {
          HWY_DYNAMIC_DISPATCH(lrpe_row)(dims, t, x, theta, scratch + worker * width, y);
        }
      });
}

void lrpe_vjp(ThreadPool& threads, const LrpeDims& dims, const float* x, const float* theta,
              const float* dy, float* scratch, float* partial, float* dx, float* d_theta) {
  const int64_t width = dims.heads * dims.dim;
  const int64_t blocks = (dims.tokens + kLrpeBlock - 1) / kLrpeBlock;
  threads.parallel_for(blocks, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      float* sum = partial + i * width;
      std::fill_n(sum, width, 0.0f);
      for (int64_t t = i * kLrpeBlock; t < std::min((i + 1) * kLrpeBlock, dims.tokens); ++t) {
        HWY_DYNAMIC_DISPATCH(lrpe_row_vjp)
        (dims, t, x, theta, dy, scratch + worker * width, sum, dx);
      }
    }
  });
  std::fill_n(d_theta, width, 0.0f);
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = 0; j < width; ++j) d_theta[j] += partial[i * width + j];
  }
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
