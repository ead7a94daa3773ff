// Goal: after the first step no memory is asked for, tensors may outlive everything, and reads of
// what nobody wrote are seen. Method: counts of calls to the device's allocator.

#include "braid/core/arena.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "braid/core/context.h"

namespace braid {
namespace {

TEST(Arena, AStepOfTheSameShapesAllocatesNothing) {
  Context ctx({.threads = 1});
  const auto step = [&] {
    std::vector<Tensor> kept;
    for (int64_t i = 1; i < 50; ++i) {
      const Tensor dropped = ctx.empty({i, 7});
      kept.push_back(ctx.zeros({3, i}));
    }
  };
  step();
  const size_t calls = ctx.arena().allocations(), bytes = ctx.arena().bytes_held();
  EXPECT_GT(calls, 0u);
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(ctx.arena().allocations(), calls);
  EXPECT_EQ(ctx.arena().bytes_held(), bytes);
}

TEST(Arena, BlocksAreReusedAndAtMostAQuarterLarger) {
  Arena arena(make_device({}));
  for (const size_t bytes : {size_t{1}, size_t{256}, size_t{257}, size_t{1000}, size_t{4096},
                             size_t{100'000}, size_t{5'000'001}}) {
    auto block = arena.allocate(bytes);
    EXPECT_GE(block->bytes(), bytes);
    EXPECT_LE(block->bytes(), std::max<size_t>(256, bytes + bytes / 4 + 1)) << bytes;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % 64, 0u);
    const void* data = block->data();
    const size_t calls = arena.allocations();
    block.reset();
    EXPECT_EQ(arena.allocate(bytes)->data(), data);
    EXPECT_EQ(arena.allocations(), calls);
  }
}

TEST(Arena, LiveBlocksNeverOverlap) {
  Arena arena(make_device({}));
  std::vector<std::shared_ptr<Storage>> blocks;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < 200; ++i) {
      blocks.push_back(arena.allocate(64 + 37 * i));
      auto* data = static_cast<uint32_t*>(blocks.back()->data());
      std::fill(data, data + blocks.back()->bytes() / 4, static_cast<uint32_t>(blocks.size()));
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto* data = static_cast<const uint32_t*>(blocks[i]->data());
      for (size_t j = 0; j < blocks[i]->bytes() / 4; ++j) ASSERT_EQ(data[j], i + 1);
    }
    blocks.resize(blocks.size() / 2);  // the other half is handed out again
  }
}

TEST(Arena, TrimGivesFreeBlocksBack) {
  Arena arena(make_device({}));
  const auto kept = arena.allocate(1000);
  arena.allocate(100'000);
  EXPECT_GT(arena.bytes_held(), 100'000u);
  arena.trim();
  EXPECT_EQ(arena.bytes_held(), kept->bytes());
}

TEST(Arena, TensorsOutliveTheirContext) {
  std::optional<Context> ctx(ContextOptions{.threads = 1});
  Tensor x = ctx->zeros({100});
  ctx.reset();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(x.f32()[i], 0);
  x.f32()[99] = 1;
}

TEST(Arena, PoisonIsNaNAlsoInUsedMemory) {
  Context ctx({.threads = 1, .poison = true});
  for (int i = 0; i < 2; ++i) {
    Tensor x = ctx.empty({300});
    for (int64_t j = 0; j < x.count(); ++j) ASSERT_TRUE(std::isnan(x.f32()[j]));
    std::fill(x.f32(), x.f32() + x.count(), 1.0f);
  }
  EXPECT_EQ(ctx.zeros({300}).f32()[299], 0);
}

TEST(Arena, RefusesWhatCannotBeAddressed) {
  Context ctx({.threads = 1});
  try {
    ctx.empty({int64_t{1} << 31, int64_t{1} << 31, 4});
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResource);
  }
}

}  // namespace
}  // namespace braid
