#pragma once

#include <cuda_runtime.h>

#include <memory>

namespace braid::cuda {

/// What DeviceApi::stream() points at on CUDA, and what every launch function is handed.
struct Queue {
  /// The device's own stream and not one for each context: work of several contexts on one device
  /// runs in the order of its launches, so that a tensor made by one may be read, or its memory
  /// given back, by another.
  cudaStream_t stream = cudaStreamLegacy;
  int multiprocessors = 0;
  std::shared_ptr<void> matmul;  // library handle and chosen algorithms; made by the first product

  static Queue& from(void* queue) { return *static_cast<Queue*>(queue); }
};

}  // namespace braid::cuda
