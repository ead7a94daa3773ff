#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace braid {

/// Host memory for blocks that are smaller than a huge page but are streamed over like large ones,
/// such as the matrices of many small experts: they lie side by side in slabs of huge pages, where
/// blocks of their own would be read through many small pages, each a miss of the TLB and the end
/// of a prefetcher's stream.
///
/// A block given back serves the next request of its size; a slab without blocks goes back to the
/// system. Thread safety: any thread, any time.
class Slabs {
 public:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kLeast = size_t{64} << 10, kMost = kHugePage - 1;  // of a block

  Slabs() = default;
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  static constexpr bool serves(size_t bytes) { return bytes >= kLeast && bytes <= kMost; }
  /// Starts on a cache line; null where the system has no memory. `serves(bytes)` must hold.
  void* allocate(size_t bytes);
  /// With the bytes it was asked for.
  void deallocate(void* data, size_t bytes) noexcept;

  size_t bytes_held() const;

 private:
  struct Slab {
    size_t bytes, used = 0;
    int64_t blocks = 0;  // in use
  };
  std::byte* grow(size_t bytes);

  mutable std::mutex mutex_;
  std::map<std::byte*, Slab> slabs_;                // by where they start
  std::map<size_t, std::vector<std::byte*>> free_;  // blocks by size
  std::byte* open_ = nullptr;                       // the slab that is being filled
  size_t held_ = 0;
};

/// Memory aligned and advised for huge pages, `bytes` rounded up to them; null where there is none.
/// To be given back by std::free.
void* allocate_huge(size_t bytes);

}  // namespace braid
