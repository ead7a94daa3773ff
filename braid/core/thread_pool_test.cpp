// Goal: every index runs exactly once, in a range no longer than asked for, before the call
// returns. Method: many loops of odd sizes, with workers awake, asleep and overtaken.

#include "braid/core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace braid {
namespace {

void expect_every_index_once(ThreadPool& pool, int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  std::atomic<bool> sane = true;
  pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int worker) {
    if (begin >= end || end - begin > std::max<int64_t>(grain, 1) || worker < 0 ||
        worker >= pool.size()) {
      sane = false;
    }
    for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)].fetch_add(1);
  });
  EXPECT_TRUE(sane) << count << " by " << grain;
  for (const auto& n : seen) ASSERT_EQ(n.load(), 1) << count << " by " << grain;
}

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t count : {1, 7, 500}) {
      for (const int64_t grain : {0, 1, 3, 5000}) {
        expect_every_index_once(pool, count, grain);
      }
    }
  }
}

TEST(ThreadPool, NothingToDo) {
  ThreadPool pool(2);
  for (const int64_t count : {0, -5}) pool.parallel_for(count, 1, [](int64_t, int64_t) { FAIL(); });
}

TEST(ThreadPool, OneThreadPerCoreByDefault) { EXPECT_GE(ThreadPool(0).size(), 1); }

TEST(ThreadPool, ManySmallLoops) {
  ThreadPool pool(3);
  int64_t total = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<int64_t> sum = 0;
    pool.parallel_for(round % 9, 1, [&](int64_t begin, int64_t) { sum += begin; });
    total += sum;
  }
  int64_t want = 0;
  for (int round = 0; round < 2000; ++round) want += (round % 9) * (round % 9 - 1) / 2;
  EXPECT_EQ(total, want);
}

TEST(ThreadPool, WorkersThatWentToSleepComeBack) {
  ThreadPool pool(4);
  for (int round = 0; round < 40; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(round % 2 == 0 ? 2000 : 30));
    expect_every_index_once(pool, 64, 1);
  }
}

TEST(ThreadPool, WhatABodyWroteIsSeenByTheCaller) {
  ThreadPool pool(2);
  std::vector<int64_t> values(10'000);
  for (int64_t round = 1; round < 50; ++round) {
    pool.parallel_for(10'000, 100, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
    ASSERT_EQ(values[9999], 9999 * round);
    ASSERT_EQ(values[1], round);
  }
}

TEST(ThreadPool, PoolsComeAndGo) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 3 != 0) expect_every_index_once(pool, 10, 1);
  }
}

}  // namespace
}  // namespace braid
