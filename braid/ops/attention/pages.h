#pragma once

#include <algorithm>
#include <cstdint>

#include "braid/core/paged.h"
#include "braid/ops/attention/kernels.h"

namespace braid::cpu {

/// Keys [begin, end) of a page, counted from the page's first.
struct KeyRange {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

/// What the query at absolute position `position` sees of the page that starts at token `base`.
inline KeyRange visible_keys(const AttentionDims& dims, int64_t position, int64_t base) {
  return {
      .begin = position < dims.window ? 0 : std::max<int64_t>(0, position - dims.window + 1 - base),
      .end = std::min(kPageTokens, position + 1 - base)};
}

/// What the queries from `first` to `last` see together.
inline KeyRange visible_keys(const AttentionDims& dims, int64_t first, int64_t last, int64_t base) {
  return {.begin = visible_keys(dims, first, base).begin,
          .end = visible_keys(dims, last, base).end};
}

/// The first token of the first page that a query at `position` sees.
inline int64_t first_page_token(const AttentionDims& dims, int64_t position) {
  const int64_t first = position < dims.window ? 0 : position - dims.window + 1;
  return first / kPageTokens * kPageTokens;
}

/// One kv head's part of a page as it lies there.
template <class T>
const T* key_part(const AttentionDims& dims, const void* page, int64_t kv_head) {
  return static_cast<const T*>(page) + kv_head * kPageTokens * dims.head_dim;
}
template <class T>
const T* value_part(const AttentionDims& dims, const void* page, int64_t kv_head) {
  return static_cast<const T*>(page) + kv_head * kPageTokens * dims.value_dim;
}

/// A part in float32, (2, hd, 32) or (dv / 32, 64, w), the same values.
void unpack_keys(const AttentionDims& dims, const BF16* from, float* to);
void unpack_values(const AttentionDims& dims, const BF16* from, float* to);

/// The first value_dim dimensions of a part of keys in the layout of values.
void values_of_keys(const AttentionDims& dims, const float* from, float* to);

}  // namespace braid::cpu
