#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "braid/ops/experts/kernels.h"

namespace braid::cpu {

/// Rows [begin, end) of a group that a task takes together.
struct Unit {
  int64_t group, begin, end;
  int64_t rows() const { return end - begin; }
};

/// Rows of a unit: eight tiles of a product, so that what lies between an expert's two products
/// stays in a near cache while its matrices are read once for many rows.
inline constexpr int64_t kUnitRows = 112;

/// Cuts every group into equal units of at most `most` rows; returns how many. `units` may be null.
inline int64_t cut_units(int64_t groups, const ExpertGroup* table, int64_t most, Unit* units) {
  int64_t count = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t rows = table[g].end - table[g].begin;
    const int64_t parts = rows > 0 ? (rows - 1) / most + 1 : 0;
    for (int64_t part = 0; part < parts; ++part, ++count) {
      if (units == nullptr) continue;
      units[count] = {.group = g,
                      .begin = table[g].begin + rows * part / parts,
                      .end = table[g].begin + rows * (part + 1) / parts};
    }
  }
  return count;
}

/// Rows of the largest unit.
inline int64_t largest_unit(int64_t groups, const ExpertGroup* table, int64_t most) {
  int64_t largest = 0;
  for (int64_t g = 0; g < groups; ++g) {
    largest = std::max(largest, table[g].end - table[g].begin);
  }
  return std::min(largest, most);
}

/// Lays pieces of scratch one behind the other, each on its own cache lines.
class ScratchLayout {
 public:
  /// Offset of the next piece.
  size_t take(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += (bytes + 63) / 64 * 64;
    return at;
  }
  size_t floats(int64_t count) { return take(static_cast<size_t>(count) * sizeof(float)); }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

template <class T>
T* piece(void* scratch, size_t at) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(scratch) + at);
}

/// A product of m rows, k apart, with a packed matrix.
inline LinearDims rows_times(const PackedMatrix& b, int64_t m, int64_t a_row, int64_t c_row) {
  return {.m = m, .b = b, .a_row = a_row, .a_column = 1, .c_row = c_row, .start_row = 0};
}

}  // namespace braid::cpu
