#include "braid/core/arena.h"

#include <bit>
#include <unordered_map>
#include <vector>

namespace braid {
namespace {

constexpr size_t kSmallest = 256;

// Four classes to a power of two: at most a quarter of a block is wasted.
size_t round_up(size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  const size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

struct Arena::Core {
  std::shared_ptr<DeviceApi> device;
  std::unordered_map<size_t, std::vector<std::unique_ptr<Storage>>> free;
  std::vector<void*> control_blocks;  // recycled: all of one size
  size_t control_bytes = 0;
  size_t allocations = 0, bytes_held = 0;
  bool poison = false;

  ~Core() {
    trim();
    for (void* block : control_blocks) ::operator delete(block);
  }
  void trim() {
    for (auto& [bytes, blocks] : free) {
      for (auto& block : blocks) {
        device->deallocate(block->data(), block->bytes());
        bytes_held -= block->bytes();
      }
      blocks.clear();
    }
  }
};

namespace {

// Recycles shared_ptr control blocks, which would otherwise be the one allocation left per tensor.
template <class T, class Core>
struct ControlAllocator {
  using value_type = T;
  template <class U>
  struct rebind {
    using other = ControlAllocator<U, Core>;
  };
  std::shared_ptr<Core> core;

  explicit ControlAllocator(std::shared_ptr<Core> c) : core(std::move(c)) {}
  template <class U>
  ControlAllocator(const ControlAllocator<U, Core>& other) : core(other.core) {}

  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    if (bytes == core->control_bytes && !core->control_blocks.empty()) {
      void* block = core->control_blocks.back();
      core->control_blocks.pop_back();
      return static_cast<T*>(block);
    }
    return static_cast<T*>(::operator new(bytes));
  }
  void deallocate(T* block, size_t n) {
    core->control_bytes = n * sizeof(T);
    core->control_blocks.push_back(block);
  }
  template <class U>
  bool operator==(const ControlAllocator<U, Core>& other) const {
    return core == other.core;
  }
};

}  // namespace

Arena::Arena(std::shared_ptr<DeviceApi> device) : core_(std::make_shared<Core>()) {
  core_->device = std::move(device);
}

std::shared_ptr<Storage> Arena::allocate(size_t bytes) {
  bytes = round_up(bytes);
  auto& list = core_->free[bytes];
  std::unique_ptr<Storage> block;
  if (list.empty()) {
    block =
        std::make_unique<Storage>(core_->device->allocate(bytes), bytes, core_->device->device());
    ++core_->allocations;
    core_->bytes_held += bytes;
  } else {
    block = std::move(list.back());
    list.pop_back();
  }
  if (core_->poison) core_->device->fill_bytes(block->data(), 0xFF, bytes);
  auto give_back = [core = core_](Storage* storage) {
    core->free[storage->bytes()].emplace_back(storage);
  };
  return std::shared_ptr<Storage>(block.release(), std::move(give_back),
                                  ControlAllocator<Storage, Core>(core_));
}

void Arena::set_poison(bool poison) { core_->poison = poison; }
size_t Arena::allocations() const { return core_->allocations; }
size_t Arena::bytes_held() const { return core_->bytes_held; }
void Arena::trim() { core_->trim(); }

}  // namespace braid
