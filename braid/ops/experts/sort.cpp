#include <algorithm>

#include "braid/ops/experts/kernels.h"

namespace braid::cpu {

RouteCounts sort_by_expert(const RouteDims& dims, const int32_t* ids, int32_t* counts,
                           int32_t* order, int32_t* place, int32_t* hit, int32_t* offsets) {
  std::fill_n(counts, dims.experts, 0);
  for (int64_t n = 0; n < dims.tokens; ++n) {
    for (int64_t j = 0; j < dims.slots; ++j) {
      const int32_t e = ids[n * dims.ids_row + j];
      if (e >= 0) ++counts[e];
    }
  }
  RouteCounts found{};
  for (int64_t e = 0; e < dims.experts; ++e) {
    const int32_t count = counts[e];
    if (count == 0) continue;
    hit[found.groups] = static_cast<int32_t>(e);
    offsets[found.groups++] = counts[e] = static_cast<int32_t>(found.rows);  // where it starts
    found.rows += count;
  }
  offsets[found.groups] = static_cast<int32_t>(found.rows);
  for (int64_t n = 0; n < dims.tokens; ++n) {
    for (int64_t j = 0; j < dims.slots; ++j) {
      const int32_t e = ids[n * dims.ids_row + j];
      const auto slot = static_cast<int32_t>(n * dims.slots + j);
      place[slot] = e < 0 ? -1 : counts[e]++;
      if (e >= 0) order[place[slot]] = slot;
    }
  }
  return found;
}

void gather_rows(int64_t rows, int64_t width, int64_t slots, const int32_t* order, int64_t from_row,
                 const float* from, float* to) {
  for (int64_t m = 0; m < rows; ++m) {
    std::copy_n(from + order[m] / slots * from_row, width, to + m * width);
  }
}

}  // namespace braid::cpu
