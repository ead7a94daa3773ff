#include "braid/core/slabs.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

namespace braid {
namespace {

constexpr size_t kLargestSlab = size_t{32} << 20;

constexpr size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

void* allocate_huge(size_t bytes) {
  const size_t rounded = round_up(bytes, Slabs::kHugePage);
  void* data = std::aligned_alloc(Slabs::kHugePage, rounded);
  if (data != nullptr) ::madvise(data, rounded, MADV_HUGEPAGE);
  return data;
}

Slabs::~Slabs() {
  for (const auto& [data, slab] : slabs_) std::free(data);
}

// As much again as there is: few slabs for a model, little waste for a small process.
std::byte* Slabs::grow(size_t bytes) {
  const size_t size = round_up(std::clamp(held_, bytes, kLargestSlab), kHugePage);
  auto* data = static_cast<std::byte*>(allocate_huge(size));
  if (data == nullptr) return nullptr;
  slabs_[data] = {.bytes = size};
  held_ += size;
  return data;
}

void* Slabs::allocate(size_t bytes) {
  const size_t rounded = round_up(bytes, 64);
  const std::lock_guard lock(mutex_);
  std::byte* block = nullptr;
  if (const auto found = free_.find(rounded); found != free_.end()) {
    block = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) free_.erase(found);
  } else {
    if (open_ == nullptr || slabs_.at(open_).bytes - slabs_.at(open_).used < rounded) {
      std::byte* fresh = grow(rounded);
      if (fresh == nullptr) return nullptr;
      open_ = fresh;
    }
    Slab& slab = slabs_.at(open_);
    block = open_ + slab.used;
    slab.used += rounded;
  }
  ++std::prev(slabs_.upper_bound(block))->second.blocks;
  return block;
}

void Slabs::deallocate(void* data, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  auto* block = static_cast<std::byte*>(data);
  const auto slab = std::prev(slabs_.upper_bound(block));
  if (--slab->second.blocks > 0) {
    free_[round_up(bytes, 64)].push_back(block);
    return;
  }
  std::byte *begin = slab->first, *end = begin + slab->second.bytes;
  for (auto list = free_.begin(); list != free_.end();) {
    std::erase_if(list->second, [&](std::byte* b) { return b >= begin && b < end; });
    list = list->second.empty() ? free_.erase(list) : std::next(list);
  }
  held_ -= slab->second.bytes;
  if (open_ == begin) open_ = nullptr;
  slabs_.erase(slab);
  std::free(begin);
}

size_t Slabs::bytes_held() const {
  const std::lock_guard lock(mutex_);
  return held_;
}

}  // namespace braid
