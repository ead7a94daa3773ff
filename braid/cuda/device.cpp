#include "braid/core/device.h"

#include <algorithm>
#include <memory>

#include "braid/core/error.h"
#include "braid/cuda/accumulate.h"
#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"

namespace braid {
namespace cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears what is not sticky, so that the next call reports for itself
  const ErrorKind kind =
      status == cudaErrorMemoryAllocation ? ErrorKind::kResource : ErrorKind::kDevice;
  throw Error(kind, std::string("cuda: ") + cudaGetErrorString(status) + " in " + call);
}

void fail(const char* what, const char* call) {
  throw Error(ErrorKind::kDevice, std::string("cuda: ") + what + " in " + call);
}

namespace {

class CudaDevice final : public DeviceApi {
 public:
  explicit CudaDevice(int index) : index_(index) {
    BRAID_CUDA_CHECK(cudaSetDevice(index));
    BRAID_CUDA_CHECK(
        cudaDeviceGetAttribute(&queue_.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  }
  ~CudaDevice() override {
    cudaSetDevice(index_);
    cudaStreamSynchronize(queue_.stream);
    queue_.matmul.reset();
  }

  Device device() const override { return {DeviceKind::kCuda, index_}; }

  void* allocate(size_t bytes) override {
    BRAID_CUDA_CHECK(cudaSetDevice(index_));
    void* data = nullptr;
    BRAID_CUDA_CHECK(cudaMalloc(&data, std::max<size_t>(bytes, 1)));
    return data;
  }
  void deallocate(void* data, size_t) noexcept override {
    cudaSetDevice(index_);
    cudaFree(data);  // waits for the work that uses it
  }

  void copy(void* to, const void* from, size_t bytes) override {
    move(to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void copy_from_host(void* to, const void* from, size_t bytes) override {
    move(to, from, bytes, cudaMemcpyHostToDevice);
    synchronize();
  }
  void copy_to_host(void* to, const void* from, size_t bytes) override {
    move(to, from, bytes, cudaMemcpyDeviceToHost);
    synchronize();
  }
  void fill_bytes(void* to, uint8_t value, size_t bytes) override {
    if (bytes == 0) return;
    BRAID_CUDA_CHECK(cudaMemsetAsync(to, value, bytes, queue_.stream));
  }
  void accumulate(float* y, const float* x, int64_t n) override {
    if (n > 0) cuda::accumulate(stream(), y, x, n);
  }
  void synchronize() override { BRAID_CUDA_CHECK(cudaStreamSynchronize(queue_.stream)); }

  void* stream() const override {
    // A kernel is launched on the device that is current for the calling thread.
    BRAID_CUDA_CHECK(cudaSetDevice(index_));
    return const_cast<Queue*>(&queue_);
  }

 private:
  void move(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (bytes == 0) return;
    BRAID_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, queue_.stream));
  }

  int index_;
  Queue queue_;
};

}  // namespace
}  // namespace cuda

std::shared_ptr<DeviceApi> make_cuda_device(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    throw Error(ErrorKind::kUnsupported, std::string("device cuda: ") + cudaGetErrorString(status));
  }
  if (index >= count) {
    throw Error(ErrorKind::kUnsupported, "device cuda:" + std::to_string(index) +
                                             ": this machine has " + std::to_string(count));
  }
  return std::make_shared<cuda::CudaDevice>(index);
}

}  // namespace braid
