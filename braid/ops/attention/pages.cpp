#include "braid/ops/attention/pages.h"

#include <bit>

namespace braid::cpu {
namespace {

// Page layouts: kernels.h. `slot` is the token's place in its page.
void write_key(const AttentionDims& dims, const float* k, int64_t slot, void* page) {
  const int64_t hd = dims.head_dim;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    const float* from = k + h * hd;
    const int64_t head = h * kPageTokens * hd + slot / kKeyBlock * kKeyBlock * hd;
    const int64_t lane = slot % kKeyBlock;
    if (dims.page_dtype == DType::kF32) {
      float* to = static_cast<float*>(page) + head + lane;
      for (int64_t d = 0; d < hd; ++d) to[d * kKeyBlock] = from[d];
    } else {
      BF16* to = static_cast<BF16*>(page) + head + 2 * lane;
      for (int64_t d = 0; d < hd; d += 2) {
        to[d * kKeyBlock] = to_bf16(from[d]);
        to[d * kKeyBlock + 1] = to_bf16(from[d + 1]);
      }
    }
  }
}

// The first of a pair clears its neighbour: products take both, and what nobody wrote may be NaN.
void write_value(const AttentionDims& dims, const float* v, int64_t slot, void* page) {
  const int64_t dv = dims.value_dim;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    const float* from = v + h * dv;
    if (dims.page_dtype == DType::kF32) {
      std::copy_n(from, dv, static_cast<float*>(page) + (h * kPageTokens + slot) * dv);
      continue;
    }
    BF16* to = static_cast<BF16*>(page) + (h * kPageTokens + slot / 2 * 2) * dv;
    if (slot % 2 == 0) {
      for (int64_t d = 0; d < dv; ++d) {
        to[2 * d] = to_bf16(from[d]);
        to[2 * d + 1] = BF16{};
      }
    } else {
      for (int64_t d = 0; d < dv; ++d) to[2 * d + 1] = to_bf16(from[d]);
    }
  }
}

// rows pairs of rows, interleaved element by element, to 2 * rows rows.
void unpack_pairs(const BF16* pairs, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    const BF16* from = pairs + 2 * i * width;
    float* even = to + 2 * i * width;
    float* odd = even + width;
    for (int64_t j = 0; j < width; ++j) {
      even[j] = to_float(from[2 * j]);
      odd[j] = to_float(from[2 * j + 1]);
    }
  }
}

}  // namespace

const float* key_tile(const AttentionDims& dims, const void* page, int64_t kv_head,
                      float* scratch) {
  const int64_t head = kv_head * kPageTokens * dims.head_dim;
  if (dims.page_dtype == DType::kF32) return static_cast<const float*>(page) + head;
  unpack_pairs(static_cast<const BF16*>(page) + head, dims.head_dim, kKeyBlock, scratch);
  return scratch;
}

const float* value_tile(const AttentionDims& dims, const void* page, int64_t kv_head,
                        float* scratch) {
  const int64_t head = kv_head * kPageTokens * dims.value_dim;
  if (dims.page_dtype == DType::kF32) return static_cast<const float*>(page) + head;
  unpack_pairs(static_cast<const BF16*>(page) + head, kPageTokens / 2, dims.value_dim, scratch);
  return scratch;
}

void attention_append(ThreadPool& threads, const AttentionDims& dims,
                      const AttentionSequence* sequences, int64_t spans, const AttentionSpan* span,
                      const float* k, const float* v) {
  const int64_t width = dims.kv_heads * (dims.head_dim + dims.value_dim);
  const bool small = spans * width < 4096;
  threads.parallel_for(spans, small ? spans : 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionSequence& s = sequences[span[i].sequence];
      for (int64_t t = span[i].begin; t < span[i].end; ++t) {
        const int64_t row = s.row + t - s.start, slot = t % kPageTokens;
        if (k != nullptr) write_key(dims, k + row * dims.k_stride, slot, s.k_page(t));
        if (v != nullptr) write_value(dims, v + row * dims.v_stride, slot, s.v_page(t));
      }
    }
  });
}

}  // namespace braid::cpu
