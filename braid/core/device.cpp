#include "braid/core/device.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "braid/core/build_config.h"
#include "braid/core/error.h"
#include "braid/core/slabs.h"

namespace braid {

#if BRAID_HAS_CUDA
std::shared_ptr<DeviceApi> make_cuda_device(int index);  // braid/cuda/device.cpp
#endif

std::string to_string(Device device) {
  if (device.kind == DeviceKind::kCpu) return "cpu";
  return device.index == 0 ? "cuda" : "cuda:" + std::to_string(device.index);
}

Device parse_device(std::string_view text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {DeviceKind::kCuda, 0};
  if (text.starts_with("cuda:")) {
    int index = 0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + 5, end, index);
    if (error == std::errc{} && rest == end && index >= 0) return {DeviceKind::kCuda, index};
  }
  fail(ErrorKind::kUsage, "device '{}': want cpu, cuda or cuda:INDEX", text);
}

namespace {

class CpuDevice final : public DeviceApi {
 public:
  Device device() const override { return {}; }

  void* allocate(size_t bytes) override {
    // Blocks of a huge page and more have their own, smaller ones share some, so that streaming
    // over weights and states misses the TLB less often.
    void* data = nullptr;
    if (Slabs::serves(bytes)) {
      data = slabs_.allocate(bytes);
    } else if (bytes >= Slabs::kHugePage) {
      data = allocate_huge(bytes);
    } else {
      data = std::aligned_alloc(64, std::max<size_t>(64, (bytes + 63) / 64 * 64));
    }
    check(data != nullptr, ErrorKind::kResource, "out of memory: {} bytes", bytes);
    return data;
  }
  void deallocate(void* data, size_t bytes) noexcept override {
    if (Slabs::serves(bytes)) {
      slabs_.deallocate(data, bytes);
    } else {
      std::free(data);
    }
  }

  // Tensors without elements may have no memory, which memcpy and memset must not be shown.
  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void copy_from_host(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void copy_to_host(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void fill_bytes(void* to, uint8_t value, size_t bytes) override {
    if (bytes > 0) std::memset(to, value, bytes);
  }
  void accumulate(float* y, const float* x, int64_t n) override {
    for (int64_t i = 0; i < n; ++i) y[i] += x[i];
  }
  void synchronize() override {}
  void* stream() const override { return nullptr; }

 private:
  Slabs slabs_;
};

}  // namespace

std::shared_ptr<DeviceApi> make_device(Device device) {
  if (device.kind == DeviceKind::kCpu) return std::make_shared<CpuDevice>();
#if BRAID_HAS_CUDA
  return make_cuda_device(device.index);
#else
  fail(ErrorKind::kUnsupported, "device {}: this build has no CUDA (BRAID_CUDA=OFF)",
       to_string(device));
#endif
}

}  // namespace braid
