#pragma once

#include <cstdint>
#include <memory>

#include "braid/core/arena.h"
#include "braid/core/device.h"
#include "braid/core/rng.h"
#include "braid/core/tape.h"
#include "braid/core/tensor.h"
#include "braid/core/thread_pool.h"

namespace braid {

/// Which algorithm evaluates a mixer. kAuto leaves it to the kernel, as measured for the device;
/// the others are for tests and benchmarks.
enum class Form : uint8_t { kAuto, kParallel, kChunked, kRecurrent };

struct ContextOptions {
  Device device{};
  int threads = 0;  // 0: one per core
  uint64_t seed = 0;
  bool poison = false;  // fill fresh activation memory with NaN
};

/// Everything an op needs that is not data: device, arena, threads, random numbers and, in
/// training, the tape. First argument everywhere; it replaces every global.
///
/// A Context is a cheap handle: copies (`with_tape`, `with_form`) share device, arena and threads.
/// Thread safety: one thread at a time for all copies.
class Context {
 public:
  explicit Context(const ContextOptions& options = {});

  Device device() const { return shared_->api->device(); }
  DeviceApi& api() const { return *shared_->api; }
  const std::shared_ptr<DeviceApi>& shared_api() const { return shared_->api; }
  ThreadPool& threads() const { return shared_->threads; }
  Arena& arena() const { return shared_->arena; }
  const Rng& rng() const { return shared_->rng; }
  Tape* tape() const { return tape_; }
  Form form() const { return form_; }

  Context with_tape(Tape* tape) const;
  Context with_form(Form form) const;

  /// Activation memory on this context's device: uninitialised, or zero.
  Tensor empty(Shape shape, DType dtype = DType::kF32) const;
  Tensor zeros(Shape shape, DType dtype = DType::kF32) const;
  /// A contiguous copy on this context's device, or on the host. Not recorded on the tape.
  Tensor to_device(const Tensor& x) const;
  Tensor to_host(const Tensor& x) const;

 private:
  struct Shared {
    std::shared_ptr<DeviceApi> api;
    Arena arena;
    ThreadPool threads;
    Rng rng;
  };
  std::shared_ptr<Shared> shared_;
  Tape* tape_ = nullptr;
  Form form_ = Form::kAuto;
};

}  // namespace braid
