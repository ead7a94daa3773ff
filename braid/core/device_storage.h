#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "braid/core/device.h"
#include "braid/core/tensor.h"

namespace braid {

/// A block of its own, straight from the device: for what lives as long as a model or a state does
/// (weights, state slots), unlike the Arena's activations.
class DeviceStorage final : public Storage {
 public:
  DeviceStorage(std::shared_ptr<DeviceApi> api, size_t bytes)
      : Storage(api->allocate(bytes), bytes, api->device()), api_(std::move(api)) {}
  ~DeviceStorage() override { api_->deallocate(data(), bytes()); }

 private:
  std::shared_ptr<DeviceApi> api_;
};

}  // namespace braid
