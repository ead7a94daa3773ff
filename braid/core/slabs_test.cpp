// Blocks side by side on huge pages: they do not overlap, are used again, and go back.
#include "braid/core/slabs.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

namespace braid {
namespace {

TEST(Slabs, BlocksAreAlignedAndDoNotOverlap) {
  Slabs slabs;
  struct Block {
    std::byte* data;
    size_t bytes;
    int value;
  };
  std::vector<Block> blocks;
  for (int i = 0; i < 200; ++i) {
    const size_t bytes = Slabs::kLeast + static_cast<size_t>(i) * 7919 % (400 << 10);
    auto* data = static_cast<std::byte*>(slabs.allocate(bytes));
    ASSERT_NE(data, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    std::memset(data, i % 251, bytes);
    blocks.push_back({data, bytes, i % 251});
    if (i % 3 == 2) {
      slabs.deallocate(blocks[blocks.size() / 2].data, blocks[blocks.size() / 2].bytes);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(blocks.size() / 2));
    }
  }
  for (const Block& b : blocks) {
    EXPECT_EQ(static_cast<int>(b.data[0]), b.value);
    EXPECT_EQ(static_cast<int>(b.data[b.bytes - 1]), b.value);
    slabs.deallocate(b.data, b.bytes);
  }
  EXPECT_EQ(slabs.bytes_held(), 0u);
}

TEST(Slabs, ABlockGivenBackServesTheNextOfItsSize) {
  Slabs slabs;
  void* first = slabs.allocate(100'000);
  void* second = slabs.allocate(100'000);
  slabs.deallocate(first, 100'000);
  const size_t held = slabs.bytes_held();
  EXPECT_NE(slabs.allocate(200'000), first);
  EXPECT_EQ(slabs.allocate(100'000), first);
  EXPECT_EQ(slabs.bytes_held(), held);
  EXPECT_NE(second, first);
}

TEST(Slabs, SmallBlocksLieSideBySide) {
  Slabs slabs;
  for (int i = 0; i < 100; ++i) slabs.allocate(128 << 10);
  EXPECT_LE(slabs.bytes_held(), size_t{32} << 20);
}

TEST(Slabs, AnyThreadMayTakeAndGive) {
  Slabs slabs;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const size_t bytes = Slabs::kLeast + static_cast<size_t>(t * 4096);
        auto* data = static_cast<std::byte*>(slabs.allocate(bytes));
        data[0] = data[bytes - 1] = static_cast<std::byte>(t);
        EXPECT_EQ(static_cast<int>(data[0]), t);
        slabs.deallocate(data, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(slabs.bytes_held(), 0u);
}

}  // namespace
}  // namespace braid
