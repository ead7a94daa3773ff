// Transforms of whole sequences: the forward pass of very long ones, and every gradient. A task is
// 16 channels of all sequences, so that the gradient of k sums over sequences in order.

#include <algorithm>
#include <optional>

#include "braid/core/thread_pool.h"
#include "braid/ops/long_conv/fft.h"
#include "braid/ops/long_conv/kernels.h"
#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

constexpr int64_t kGroup = 16;

// Outputs [0, T) and lags [0, min(L, T)) of a cyclic convolution of this length do not wrap.
int64_t transform_length(int64_t tokens, int64_t taps) {
  return RealFft::good_length(std::max<int64_t>(2, tokens + std::min(tokens, taps) - 1));
}

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// A worker's buffers for one group of channels; time runs along the rows.
struct Buffers {
  float *k, *dk;      // (16, taps)
  float *u, *dy;      // (16, tokens)
  float* time;        // (n)
  float *U, *DY, *K;  // (n / 2 + 1, 2)
  std::byte* plan;

  static size_t floats(const LongConvWholeDims& dims, int64_t n) {
    return static_cast<size_t>(2 * kGroup * (dims.taps + dims.tokens) + n + 3 * (n + 2));
  }
  Buffers(const LongConvWholeDims& dims, int64_t n, std::byte* scratch) {
    k = reinterpret_cast<float*>(scratch);
    dk = k + kGroup * dims.taps;
    u = dk + kGroup * dims.taps;
    dy = u + kGroup * dims.tokens;
    time = dy + kGroup * dims.tokens;
    U = time + n;
    DY = U + n + 2;
    K = DY + n + 2;
    plan = scratch + align(floats(dims, n) * sizeof(float));
  }
};

// out <- a b, or a conj(b); bins of real and imaginary parts. `out` may be a.
void multiply_bins(int64_t bins, bool conjugate, const float* a, const float* b, float* out) {
  const float sign = conjugate ? -1.0f : 1.0f;
  for (int64_t i = 0; i < 2 * bins; i += 2) {
    const float ar = a[i], ai = a[i + 1], br = b[i], bi = sign * b[i + 1];
    out[i] = ar * br - ai * bi;
    out[i + 1] = ar * bi + ai * br;
  }
}

// The transforms of one channel, one sequence after the other.
class Channel {
 public:
  Channel(const LongConvWholeDims& dims, const Buffers& buffers) : dims_(dims), b_(buffers) {}

  // u <- k * u + d u
  void forward(int64_t c, float d) {
    length_ = 0;
    for (int64_t s = 0; s < dims_.sequences; ++s) {
      const int64_t T = begin(s, c);
      if (T == 0) continue;
      float* u = b_.u + c * dims_.tokens + dims_.offsets[s];
      to_bins(u, T, b_.U);
      multiply_bins(bins(), false, b_.U, b_.K, b_.U);
      fft_->inverse(b_.U, b_.time);
      for (int64_t t = 0; t < T; ++t) u[t] = b_.time[t] * scale() + d * u[t];
    }
  }

  // dy <- du; dk gathers over sequences; returns dd.
  float backward(int64_t c, float d) {
    length_ = 0;
    float dd = 0;
    float* dk = b_.dk + c * dims_.taps;
    std::fill_n(dk, dims_.taps, 0.0f);
    for (int64_t s = 0; s < dims_.sequences; ++s) {
      const int64_t T = begin(s, c);
      if (T == 0) continue;
      const float* u = b_.u + c * dims_.tokens + dims_.offsets[s];
      float* dy = b_.dy + c * dims_.tokens + dims_.offsets[s];
      for (int64_t t = 0; t < T; ++t) dd += dy[t] * u[t];
      to_bins(u, T, b_.U);
      to_bins(dy, T, b_.DY);
      multiply_bins(bins(), true, b_.DY, b_.U, b_.U);
      fft_->inverse(b_.U, b_.time);
      const int64_t taps = std::min(T, dims_.taps);
      for (int64_t j = 0; j < taps; ++j) dk[j] += b_.time[j] * scale();
      multiply_bins(bins(), true, b_.DY, b_.K, b_.DY);
      fft_->inverse(b_.DY, b_.time);
      for (int64_t t = 0; t < T; ++t) dy[t] = b_.time[t] * scale() + d * dy[t];
    }
    return dd;
  }

 private:
  int64_t bins() const { return length_ / 2 + 1; }
  float scale() const { return 1.0f / static_cast<float>(length_); }

  // A plan and the spectrum of the taps that sequence s needs; neither changes between sequences
  // of one length. Returns its tokens.
  int64_t begin(int64_t s, int64_t c) {
    const int64_t T = dims_.offsets[s + 1] - dims_.offsets[s];
    const int64_t taps = std::min(T, dims_.taps);
    const int64_t n = T == 0 ? 0 : transform_length(T, dims_.taps);
    if (T == 0 || (n == length_ && taps == taps_)) return T;
    if (n != planned_) fft_.emplace(n, b_.plan);
    planned_ = length_ = n;
    taps_ = taps;
    to_bins(b_.k + c * dims_.taps, taps, b_.K);
    return T;
  }

  void to_bins(const float* from, int64_t count, float* to) const {
    std::copy_n(from, count, b_.time);
    std::fill_n(b_.time + count, length_ - count, 0.0f);
    fft_->forward(b_.time, to);
  }

  const LongConvWholeDims& dims_;
  const Buffers& b_;
  std::optional<RealFft> fft_;
  int64_t planned_ = 0, length_ = 0, taps_ = 0;
};

// Calls body(channel, buffers, c0, count) for each group of channels.
template <class Body>
void for_each_group(ThreadPool& threads, const LongConvWholeDims& dims, std::byte* scratch,
                    Body&& body) {
  const int64_t groups = (dims.channels + kGroup - 1) / kGroup;
  const int64_t n = transform_length(dims.longest, dims.taps);
  const size_t bytes = long_conv_whole_scratch(dims);
  threads.parallel_for(groups, 1, [&](int64_t begin, int64_t end, int worker) {
    const Buffers buffers(dims, n, scratch + static_cast<size_t>(worker) * bytes);
    Channel channel(dims, buffers);
    for (int64_t i = begin; i < end; ++i) {
      body(channel, buffers, i * kGroup, std::min(kGroup, dims.channels - i * kGroup));
    }
  });
}

}  // namespace

size_t long_conv_whole_scratch(const LongConvWholeDims& dims) {
  const int64_t n = transform_length(dims.longest, dims.taps);
  return align(Buffers::floats(dims, n) * sizeof(float)) + RealFft::bytes(n);
}

void long_conv_whole(ThreadPool& threads, const LongConvWholeDims& dims, const float* k,
                     const float* d, const float* u, float* y, std::byte* scratch) {
  const int64_t N = dims.tokens, C = dims.channels, L = dims.taps;
  for_each_group(threads, dims, scratch,
                 [&](Channel& channel, const Buffers& b, int64_t c0, int64_t count) {
                   simd::transpose(L, count, k + c0, C, b.k, L);
                   simd::transpose(N, count, u + c0, dims.u_stride, b.u, N);
                   for (int64_t c = 0; c < count; ++c) channel.forward(c, d[c0 + c]);
                   simd::transpose(count, N, b.u, N, y + c0, C);
                 });
}

void long_conv_vjp(ThreadPool& threads, const LongConvWholeDims& dims, const float* k,
                   const float* d, const float* u, const float* dy, float* du, float* dk, float* dd,
                   std::byte* scratch) {
  const int64_t N = dims.tokens, C = dims.channels, L = dims.taps;
  for_each_group(threads, dims, scratch,
                 [&](Channel& channel, const Buffers& b, int64_t c0, int64_t count) {
                   simd::transpose(L, count, k + c0, C, b.k, L);
                   simd::transpose(N, count, u + c0, dims.u_stride, b.u, N);
                   simd::transpose(N, count, dy + c0, dims.dy_stride, b.dy, N);
                   for (int64_t c = 0; c < count; ++c) dd[c0 + c] = channel.backward(c, d[c0 + c]);
                   simd::transpose(count, N, b.dy, N, du + c0, C);
                   simd::transpose(count, L, b.dk, L, dk + c0, C);
                 });
}

}  // namespace braid::cpu
