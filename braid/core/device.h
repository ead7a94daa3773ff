#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace braid {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(Device device);
/// "cpu", "cuda" or "cuda:1"; anything else is refused.
Device parse_device(std::string_view text);

/// What the engine needs of a device beside kernels: memory, copies, one ordered stream, which all
/// users of the device share, so that a tensor may pass from one context to another. Kernels reach
/// `stream()` through Context; nothing above the ops calls a device by name.
class DeviceApi {
 public:
  virtual ~DeviceApi() = default;
  virtual Device device() const = 0;

  /// 64-byte aligned, uninitialised. Throws Error(kResource) when there is none left.
  virtual void* allocate(size_t bytes) = 0;
  virtual void deallocate(void* data, size_t bytes) noexcept = 0;

  /// All of these are ordered on the stream; the host copies return when the data has arrived.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_from_host(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, size_t bytes) = 0;
  virtual void fill_bytes(void* to, uint8_t value, size_t bytes) = 0;
  /// y <- y + x over n float32.
  virtual void accumulate(float* y, const float* x, int64_t n) = 0;
  virtual void synchronize() = 0;

  /// What kernels are launched on: a cuda::Queue on CUDA, null on the CPU.
  virtual void* stream() const = 0;
};

/// Throws Error(kUnsupported) where this build or machine lacks the device.
std::shared_ptr<DeviceApi> make_device(Device device);

}  // namespace braid
