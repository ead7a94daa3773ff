#pragma once

#include <cuda_runtime.h>

#include <memory>

namespace braid::cuda {

/// What DeviceApi::stream() points at on CUDA, and what every launch function is handed.
struct Queue {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  std::shared_ptr<void> matmul;  // library handle and chosen algorithms; made by the first product

  static Queue& from(void* queue) { return *static_cast<Queue*>(queue); }
};

}  // namespace braid::cuda
