#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Strides are elements between rows; outputs are dense.
struct GatedRmsNormDims {
  int64_t rows, width, groups;  // T, E, G
  int64_t y_stride, z_stride;
  float eps = 0;
  bool norm_before_gate = false;
  bool shared_weight = false;  // w (E / G) serves every group

  int64_t weight_size() const { return shared_weight ? width / groups : width; }
};

/// Rows whose share of d weight is summed up in order before the blocks are, in order.
inline constexpr int64_t kGatedRmsNormBlock = 32;

namespace cpu {

void gated_rms_norm(ThreadPool& threads, const GatedRmsNormDims& dims, const float* y,
                    const float* z, const float* w, float* out);

/// partial (blocks of kGatedRmsNormBlock rows, E) is scratch for dw.
void gated_rms_norm_vjp(ThreadPool& threads, const GatedRmsNormDims& dims, int64_t dout_stride,
                        const float* y, const float* z, const float* w, const float* dout,
                        float* partial, float* dy, float* dz, float* dw);

}  // namespace cpu
}  // namespace braid
