#pragma once

#include <cstddef>
#include <memory>

#include "braid/core/device.h"
#include "braid/core/tensor.h"

namespace braid {

/// Activation memory. Blocks go back to a free list when their last Tensor goes and are handed out
/// again by size class, so after the first step (same shapes) nothing is allocated any more.
///
/// Thread safety: one thread at a time. Tensors may outlive the Arena.
class Arena {
 public:
  explicit Arena(std::shared_ptr<DeviceApi> device);

  std::shared_ptr<Storage> allocate(size_t bytes);

  /// Fresh blocks are filled with 0xFF (a NaN in every float dtype): tests find reads of memory
  /// that nothing wrote.
  void set_poison(bool poison);

  /// Calls to the device's allocator so far, and bytes held (in use or free).
  size_t allocations() const;
  size_t bytes_held() const;
  /// Gives the free blocks back to the device.
  void trim();

 private:
  struct Core;
  std::shared_ptr<Core> core_;
};

}  // namespace braid
