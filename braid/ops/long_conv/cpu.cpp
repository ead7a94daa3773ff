// The blocked form and the direct one. A task is 16 channels of one sequence, which goes through
// its blocks in order. Rows of inputs and outputs have channels along the lanes, spectra have bins.

#include <algorithm>
#include <optional>
#include <type_traits>

#include "braid/core/thread_pool.h"
#include "braid/ops/long_conv/fft.h"
#include "braid/ops/long_conv/kernels.h"
#include "braid/simd/gemm.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/long_conv/cpu.cpp"
#include <hwy/foreach_target.h>
#include "braid/simd/vector-inl.h"
// clang-format on

#ifndef BRAID_OPS_LONG_CONV_ARGUMENTS_
#define BRAID_OPS_LONG_CONV_ARGUMENTS_
namespace braid::cpu {
namespace {

constexpr int64_t kBlock = kLongConvBlock, kSpectrum = kLongConvSpectrum;
constexpr int64_t kTransform = 2 * kBlock;
constexpr int64_t kGroup = 16;  // channels to a task

// A worker's buffers, and its plan once there is one.
struct Worker {
  std::byte* plan;
  float* time;     // (128)
  float* bins;     // (65, 2)
  float* turned;   // (16, 64): a block with time along the row
  float* inputs;   // (64, 16), where the sequence has no state
  float* pending;  // (64, 16), where the sequence has no state
  float* spectra;  // (blocks, 16, 2, 64), where the sequence has no state

  static size_t fixed_bytes() {
    return RealFft::bytes(kTransform) + sizeof(float) * (kTransform + 80 * 2 + 3 * kGroup * kBlock);
  }
  explicit Worker(std::byte* scratch) : plan(scratch) {
    time = reinterpret_cast<float*>(scratch + RealFft::bytes(kTransform));
    bins = time + kTransform;
    turned = bins + 80 * 2;
    inputs = turned + kGroup * kBlock;
    pending = inputs + kGroup * kBlock;
    spectra = pending + kGroup * kBlock;
  }
};

// What the channels [c0, c0 + count) of one sequence read and write.
struct Group {
  int64_t count;      // channels
  int64_t blocks;     // of lags
  const float* head;  // row 0 of the taps, rows `head_stride` apart
  const float* d;
  const float* filter;  // spectra of the first channel, (count, blocks, 2, 64)
  int64_t head_stride;

  float *inputs, *pending;  // (64, count), rows `stride` apart
  int64_t stride;
  void* const* pages;  // null: `own`
  float* own;
  int64_t first_channel;

  float* spectrum(int64_t block, int64_t c) const {
    if (pages == nullptr) return own + (block * kGroup + c) * kSpectrum;
    return static_cast<float*>(pages[block]) + (first_channel + c) * kSpectrum;
  }
};

Group make_group(const LongConvDims& dims, const LongConvSequence& s, const LongConvTaps& taps,
                 const Worker& worker, int64_t c0) {
  const bool carried = s.block != nullptr;
  const int64_t C = dims.channels;
  return {.count = std::min(kGroup, C - c0),
          .blocks = dims.blocks(),
          .head = taps.head + c0,
          .d = taps.d + c0,
          .filter = taps.spectra + c0 * dims.blocks() * kSpectrum,
          .head_stride = C,
          .inputs = carried ? s.block + c0 : worker.inputs,
          .pending = carried ? s.block + kBlock * C + c0 : worker.pending,
          .stride = carried ? C : kGroup,
          .pages = s.pages,
          .own = worker.spectra,
          .first_channel = c0};
}

}  // namespace
}  // namespace braid::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

using D = vec::F32Tag;
using V = vec::F32;
constexpr int kBins = 4;  // vectors of bins at a time
constexpr int kRows = 8;  // outputs at a time

// re, im <- + x h for one vector of bins. The first lane of the first one holds two real bins.
template <bool kFirst>
HWY_INLINE void multiply_add(const float* x, const float* h, V& re, V& im) {
  const D d;
  const V xr = hn::LoadU(d, x), xi = hn::LoadU(d, x + kBlock);
  const V hr = hn::LoadU(d, h), hi = hn::LoadU(d, h + kBlock);
  V cross = hi, straight = hr;
  if constexpr (kFirst) {
    const auto lane = hn::FirstN(d, 1);
    cross = hn::IfThenZeroElse(lane, hi);
    straight = hn::IfThenElse(lane, hi, hr);
  }
  re = hn::NegMulAdd(xi, cross, hn::MulAdd(xr, hr, re));
  im = hn::MulAdd(xi, straight, hn::MulAdd(xr, cross, im));
}

template <bool kFirst>
HWY_INLINE void sum_blocks(const Group& g, int64_t block, int64_t c, size_t bin, float* bins) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const float* filter = g.filter + c * g.blocks * kSpectrum + bin;
  V re[kBins], im[kBins];
  for (int i = 0; i < kBins; ++i) re[i] = im[i] = hn::Zero(d);
  for (int64_t a = std::max<int64_t>(0, block - g.blocks); a < block; ++a) {
    const float* x = g.spectrum(a, c) + bin;
    const float* h = filter + (block - a - 1) * kSpectrum;
    multiply_add<kFirst>(x, h, re[0], im[0]);
    for (size_t i = 1; i < kBins; ++i) {
      multiply_add<false>(x + i * lanes, h + i * lanes, re[i], im[i]);
    }
  }
  for (size_t i = 0; i < kBins; ++i) {
    hn::StoreInterleaved2(re[i], im[i], d, bins + 2 * (bin + i * lanes));
  }
}

// pending (64, count) <- what all earlier blocks add to the outputs of `block`.
void add_earlier_blocks(const Group& g, int64_t block, const RealFft* fft, const Worker& worker) {
  if (block == 0 || g.blocks == 0) {
    for (int64_t r = 0; r < kBlock; ++r) std::fill_n(g.pending + r * g.stride, g.count, 0.0f);
    return;
  }
  const size_t step = kBins * hn::Lanes(D());
  for (int64_t c = 0; c < g.count; ++c) {
    sum_blocks<true>(g, block, c, 0, worker.bins);
    for (size_t bin = step; bin < kBlock; bin += step) {
      sum_blocks<false>(g, block, c, bin, worker.bins);
    }
    worker.bins[2 * kBlock] = worker.bins[1];
    worker.bins[2 * kBlock + 1] = worker.bins[1] = 0;
    fft->inverse(worker.bins, worker.time);
    std::copy_n(worker.time + kBlock, kBlock, worker.turned + c * kBlock);
  }
  simd::transpose(g.count, kBlock, worker.turned, kBlock, g.pending, g.stride);
}

// bins (65, 2) as kernels keep them.
void store_spectrum(const float* bins, float* spectrum) {
  const D d;
  for (size_t i = 0; i < kBlock; i += hn::Lanes(d)) {
    V re, im;
    hn::LoadInterleaved2(d, bins + 2 * i, re, im);
    hn::StoreU(re, d, spectrum + i);
    hn::StoreU(im, d, spectrum + kBlock + i);
  }
  spectrum[kBlock] = bins[2 * kBlock];
}

// The spectra of a complete block of inputs, followed by as many zeros.
void transform_block(const Group& g, int64_t block, const RealFft* fft, const Worker& worker) {
  simd::transpose(kBlock, g.count, g.inputs, g.stride, worker.turned, kBlock);
  std::fill_n(worker.time + kBlock, kBlock, 0.0f);
  for (int64_t c = 0; c < g.count; ++c) {
    std::copy_n(worker.turned + c * kBlock, kBlock, worker.time);
    fft->forward(worker.time, worker.bins);
    store_spectrum(worker.bins, g.spectrum(block, c));
  }
}

// y[i] <- before[r + i] + sum_{q = first..r + i} k[r + i - q] u[q] + d u[r + i] for kM rows, each
// one chain over rising q. `before` may be null.
template <int kM, class At>
HWY_INLINE void rows_directly(At at, int64_t first, int64_t r, const float* u, int64_t u_stride,
                              const float* k, int64_t k_stride, V skip, const float* before,
                              int64_t before_stride, float* y, int64_t y_stride) {
  V sum[kM];
  for (int i = 0; i < kM; ++i) {
    sum[i] = before == nullptr ? hn::Zero(D()) : at.load(before + (r + i) * before_stride);
  }
  for (int64_t q = first; q <= r; ++q) {
    const V x = at.load(u + q * u_stride);
    const float* from = k + (r - q) * k_stride;
    for (int i = 0; i < kM; ++i) sum[i] = hn::MulAdd(at.load(from + i * k_stride), x, sum[i]);
  }
  for (int q = 1; q < kM; ++q) {
    const V x = at.load(u + (r + q) * u_stride);
    for (int i = q; i < kM; ++i) sum[i] = hn::MulAdd(at.load(k + (i - q) * k_stride), x, sum[i]);
  }
  for (int i = 0; i < kM; ++i) {
    at.store(hn::MulAdd(skip, at.load(u + (r + i) * u_stride), sum[i]), y + i * y_stride);
  }
}

// Rows [r0, r1) of a block, to y, whose first row is r0.
void finish_rows(const Group& g, int64_t r0, int64_t r1, float* y, int64_t y_stride) {
  vec::for_each_vector(static_cast<size_t>(g.count), [&](auto at, size_t j) {
    const V skip = at.load(g.d + j);
    const auto rows = [&](auto count, int64_t r) {
      rows_directly<count()>(at, 0, r, g.inputs + j, g.stride, g.head + j, g.head_stride, skip,
                             g.pending + j, g.stride, y + (r - r0) * y_stride + j, y_stride);
    };
    int64_t r = r0;
    for (; r + kRows <= r1; r += kRows) rows(std::integral_constant<int, kRows>(), r);
    for (; r < r1; ++r) rows(std::integral_constant<int, 1>(), r);
  });
}

void run_group(const LongConvDims& dims, const LongConvSequence& s, const LongConvTaps& taps,
               const RealFft* fft, const Worker& worker, int64_t c0, const float* u, float* y) {
  const Group g = make_group(dims, s, taps, worker, c0);
  const int64_t end = s.start + s.length, C = dims.channels;
  for (int64_t t = s.start; t < end;) {
    const int64_t block = t / kBlock, r0 = t % kBlock, r1 = std::min(kBlock, r0 + end - t);
    if (r0 == 0) add_earlier_blocks(g, block, fft, worker);
    const int64_t row = s.row + t - s.start;
    for (int64_t r = r0; r < r1; ++r) {
      std::copy_n(u + (row + r - r0) * dims.u_stride + c0, g.count, g.inputs + r * g.stride);
    }
    finish_rows(g, r0, r1, y + row * C + c0, C);
    t += r1 - r0;
    const bool read_later = s.pages != nullptr || t < end;
    if (r1 == kBlock && g.blocks > 0 && read_later) transform_block(g, block, fft, worker);
  }
}

void run_directly(const LongConvDims& dims, const LongConvSequence& s, const float* k,
                  const float* d, int64_t c0, int64_t count, const float* u, float* y) {
  const int64_t C = dims.channels;
  vec::for_each_vector(static_cast<size_t>(count), [&](auto at, size_t j) {
    const size_t c = static_cast<size_t>(c0) + j;
    const V skip = at.load(d + c);
    for (int64_t r = 0; r < s.length; ++r) {
      rows_directly<1>(at, std::max<int64_t>(0, r - dims.taps + 1), r,
                       u + s.row * dims.u_stride + c, dims.u_stride, k + c, C, skip, nullptr, 0,
                       y + (s.row + r) * C + c, C);
    }
  });
}

// Channels [c0, c0 + count): their spectra, scaled for the inverse transform.
void pack_group(const LongConvDims& dims, const RealFft& fft, const Worker& worker, float* columns,
                int64_t c0, int64_t count, const float* k, float* spectra) {
  const int64_t blocks = dims.blocks(), length = (blocks + 1) * kBlock;  // >= taps - 1
  const int64_t taps = std::min(dims.taps, length);
  for (int64_t c = 0; c < count; ++c) std::fill_n(columns + c * length, length, 0.0f);
  simd::transpose(taps, count, k + c0, dims.channels, columns, length);
  for (int64_t i = 0; i < count * length; ++i) columns[i] *= 1.0f / kTransform;
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t b = 0; b < blocks; ++b) {
      fft.forward(columns + c * length + b * kBlock, worker.bins);
      store_spectrum(worker.bins, spectra + ((c0 + c) * blocks + b) * kSpectrum);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(run_group);
HWY_EXPORT(run_directly);
HWY_EXPORT(pack_group);

namespace {

constexpr int64_t groups_of(int64_t channels) { return (channels + kGroup - 1) / kGroup; }
constexpr size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

bool needs_transforms(const LongConvSequence& s) {
  return s.start % kBlock + s.length >= kBlock || s.start % kBlock == 0;
}

}  // namespace

size_t long_conv_pack_scratch(const LongConvDims& dims) {
  const int64_t columns = kGroup * (dims.blocks() + 1) * kBlock;
  return align(Worker::fixed_bytes() + static_cast<size_t>(columns) * sizeof(float));
}

void long_conv_pack(ThreadPool& threads, const LongConvDims& dims, const float* k, float* head,
                    float* spectra, std::byte* scratch) {
  const int64_t C = dims.channels, rows = std::min(kBlock, dims.taps);
  std::copy_n(k, rows * C, head);
  std::fill_n(head + rows * C, (kBlock - rows) * C, 0.0f);
  const size_t bytes = long_conv_pack_scratch(dims);
  threads.parallel_for(groups_of(C), 1, [&](int64_t begin, int64_t end, int index) {
    const Worker worker(scratch + static_cast<size_t>(index) * bytes);
    const RealFft fft(kTransform, worker.plan);
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(pack_group)
      (dims, fft, worker, worker.spectra, i * kGroup, std::min(kGroup, C - i * kGroup), k, spectra);
    }
  });
}

size_t long_conv_scratch(const LongConvDims& dims) {
  const int64_t spectra = dims.carried ? 0 : dims.longest / kBlock * kGroup * kSpectrum;
  return align(Worker::fixed_bytes() + static_cast<size_t>(spectra) * sizeof(float));
}

void long_conv(ThreadPool& threads, const LongConvDims& dims, const LongConvSequence* sequences,
               const LongConvTaps& taps, const float* u, float* y, std::byte* scratch) {
  const size_t bytes = long_conv_scratch(dims);
  const int64_t groups = groups_of(dims.channels);
  const bool transforms = std::any_of(sequences, sequences + dims.sequences, needs_transforms);
  // A transform costs some microseconds a group, a token without one a tenth of one.
  const int64_t grain =
      transforms ? 1 : std::max<int64_t>(1, 64 / std::max<int64_t>(1, dims.longest));
  threads.parallel_for(groups * dims.sequences, grain, [&](int64_t begin, int64_t end, int index) {
    const Worker worker(scratch + static_cast<size_t>(index) * bytes);
    std::optional<RealFft> fft;
    if (transforms) fft.emplace(kTransform, worker.plan);
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(run_group)
      (dims, sequences[i / groups], taps, fft ? &*fft : nullptr, worker, i % groups * kGroup, u, y);
    }
  });
}

void long_conv_direct(ThreadPool& threads, const LongConvDims& dims,
                      const LongConvSequence* sequences, const float* k, const float* d,
                      const float* u, float* y) {
  const int64_t groups = groups_of(dims.channels);
  threads.parallel_for(groups * dims.sequences, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c0 = i % groups * kGroup;
      HWY_DYNAMIC_DISPATCH(run_directly)
      (dims, sequences[i / groups], k, d, c0, std::min(kGroup, dims.channels - c0), u, y);
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
