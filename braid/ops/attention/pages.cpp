#include "braid/ops/attention/pages.h"

namespace braid::cpu {
namespace {

// Page layouts: kernels.h. `slot` is the token's place in its page.
void write_key(const AttentionDims& dims, const float* k, int64_t slot, void* page) {
  const int64_t hd = dims.head_dim;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    const float* from = k + h * hd;
    const int64_t head = h * kPageTokens * hd + slot / kPageBlock * kPageBlock * hd;
    const int64_t lane = slot % kPageBlock;
    if (dims.page_dtype == DType::kF32) {
      float* to = static_cast<float*>(page) + head + lane;
      for (int64_t d = 0; d < hd; ++d) to[d * kPageBlock] = from[d];
    } else {
      BF16* to = static_cast<BF16*>(page) + head + 2 * lane;
      for (int64_t d = 0; d < hd; d += 2) {
        to[d * kPageBlock] = to_bf16(from[d]);
        to[d * kPageBlock + 1] = to_bf16(from[d + 1]);
      }
    }
  }
}

// The first of a pair clears its neighbour: products take both, and what nobody wrote may be NaN.
void write_value_block(const float* v, int64_t width, int64_t slot, BF16* block) {
  BF16* to = block + slot / 2 * 2 * width;
  if (slot % 2 == 0) {
    for (int64_t d = 0; d < width; ++d) {
      to[2 * d] = to_bf16(v[d]);
      to[2 * d + 1] = BF16{};
    }
  } else {
    for (int64_t d = 0; d < width; ++d) to[2 * d + 1] = to_bf16(v[d]);
  }
}

void write_value(const AttentionDims& dims, const float* v, int64_t slot, void* page) {
  const int64_t dv = dims.value_dim;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    for (int64_t d = 0; d < dv; d += kPageBlock) {
      const float* from = v + h * dv + d;
      const int64_t block = (h * dv + d) * kPageTokens, width = std::min(kPageBlock, dv - d);
      if (dims.page_dtype == DType::kF32) {
        std::copy_n(from, width, static_cast<float*>(page) + block + slot * width);
      } else {
        write_value_block(from, width, slot, static_cast<BF16*>(page) + block);
      }
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

void unpack_keys(const AttentionDims& dims, const BF16* from, float* to) {
  unpack_pairs(from, dims.head_dim, kPageBlock, to);
}

void unpack_values(const AttentionDims& dims, const BF16* from, float* to) {
  for (int64_t d = 0; d < dims.value_dim; d += kPageBlock) {
    unpack_pairs(from + d * kPageTokens, kPageTokens / 2, std::min(kPageBlock, dims.value_dim - d),
                 to + d * kPageTokens);
  }
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
