#include "braid/ops/attention/pages.h"

#include <bit>

#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

// Page layouts: kernels.h. Keys of `count` tokens, whose rows are k_stride apart, go to lanes from
// `slot` on, all within one block of lanes.
void write_keys_f32(const AttentionDims& dims, const float* k, int64_t slot, int64_t count,
                    float* page) {
  const int64_t hd = dims.head_dim, lane = slot % kPageBlock, block = (slot - lane) * hd;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    simd::transpose(count, hd, k + h * hd, dims.k_stride,
                    page + h * kPageTokens * hd + block + lane, kPageBlock);
  }
}

// A pair moves as one float32 pattern.
void write_keys_bf16(const AttentionDims& dims, const float* k, int64_t slot, int64_t count,
                     BF16* page) {
  constexpr int64_t kWidth = 64;  // dimensions at a time
  float pairs[kPageBlock * kWidth / 2];
  const int64_t hd = dims.head_dim, lane = slot % kPageBlock, block = (slot - lane) * hd;
  for (int64_t h = 0; h < dims.kv_heads; ++h) {
    for (int64_t d = 0; d < hd; d += kWidth) {
      const int64_t width = std::min(kWidth, hd - d);
      for (int64_t i = 0; i < count; ++i) {
        const float* from = k + i * dims.k_stride + h * hd + d;
        for (int64_t j = 0; j < width; j += 2) {
          const uint32_t low = to_bf16(from[j]).bits, high = to_bf16(from[j + 1]).bits;
          pairs[(i * width + j) / 2] = std::bit_cast<float>(low | high << 16);
        }
      }
      BF16* to = page + h * kPageTokens * hd + block + d * kPageBlock + 2 * lane;
      simd::transpose(count, width / 2, pairs, width / 2, reinterpret_cast<float*>(to), kPageBlock);
    }
  }
}

void write_keys(const AttentionDims& dims, const float* k, int64_t slot, int64_t count,
                void* page) {
  while (count > 0) {
    const int64_t n = std::min(count, kPageBlock - slot % kPageBlock);
    if (dims.page_dtype == DType::kF32) {
      write_keys_f32(dims, k, slot, n, static_cast<float*>(page));
    } else {
      write_keys_bf16(dims, k, slot, n, static_cast<BF16*>(page));
    }
    k += n * dims.k_stride;
    slot += n;
    count -= n;
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

void values_of_keys(const AttentionDims& dims, const float* from, float* to) {
  for (int64_t d = 0; d < dims.value_dim; d += kPageBlock) {
    const int64_t width = std::min(kPageBlock, dims.value_dim - d);
    for (int64_t key = 0; key < kPageTokens; key += kPageBlock) {
      simd::transpose(width, kPageBlock, from + key * dims.head_dim + d * kPageBlock, kPageBlock,
                      to + d * kPageTokens + key * width, width);
    }
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
      const int64_t first = span[i].begin, count = span[i].end - first;
      const int64_t row = s.row + first - s.start, slot = first % kPageTokens;
      if (k != nullptr) {
        write_keys(dims, k + row * dims.k_stride, slot, count, s.k_page(first));
      }
      for (int64_t t = 0; t < count && v != nullptr; ++t) {
        write_value(dims, v + (row + t) * dims.v_stride, slot + t, s.v_page(first));
      }
    }
  });
}

}  // namespace braid::cpu
