#pragma once

#include <cstddef>
#include <cstdint>

namespace braid::cpu {

/// Transforms of n real numbers (n even), unscaled, in memory that the caller provides: nothing is
/// allocated. A plan has work space inside, so each thread has one of its own.
class RealFft {
 public:
  /// Bytes for a plan of n, a multiple of 64.
  static size_t bytes(int64_t n);
  /// The least length >= n whose factors are 2, 3 and 5.
  static int64_t good_length(int64_t n);

  /// `memory` is aligned to 64 bytes.
  RealFft(int64_t n, std::byte* memory);

  /// time (n) -> bins (n / 2 + 1, 2), real and imaginary parts side by side; and back.
  void forward(const float* time, float* bins) const;
  void inverse(const float* bins, float* time) const;

 private:
  void *forward_, *inverse_;
};

}  // namespace braid::cpu
