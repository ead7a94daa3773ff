#include "braid/ops/long_conv/fft.h"

#include <kiss_fftr.h>

namespace braid::cpu {
namespace {

size_t bytes_of_one(int64_t n, bool inverse) {
  size_t bytes = 0;
  kiss_fftr_alloc(static_cast<int>(n), inverse ? 1 : 0, nullptr, &bytes);
  return (bytes + 63) / 64 * 64;
}

}  // namespace

size_t RealFft::bytes(int64_t n) { return bytes_of_one(n, false) + bytes_of_one(n, true); }

int64_t RealFft::good_length(int64_t n) {
  return 2 * int64_t{kiss_fft_next_fast_size(static_cast<int>((n + 1) / 2))};
}

RealFft::RealFft(int64_t n, std::byte* memory) {
  size_t bytes = bytes_of_one(n, false);
  forward_ = kiss_fftr_alloc(static_cast<int>(n), 0, memory, &bytes);
  memory += bytes_of_one(n, false);
  bytes = bytes_of_one(n, true);
  inverse_ = kiss_fftr_alloc(static_cast<int>(n), 1, memory, &bytes);
}

void RealFft::forward(const float* time, float* bins) const {
  kiss_fftr(static_cast<kiss_fftr_cfg>(forward_), time, reinterpret_cast<kiss_fft_cpx*>(bins));
}

void RealFft::inverse(const float* bins, float* time) const {
  kiss_fftri(static_cast<kiss_fftr_cfg>(inverse_), reinterpret_cast<const kiss_fft_cpx*>(bins),
             time);
}

}  // namespace braid::cpu
