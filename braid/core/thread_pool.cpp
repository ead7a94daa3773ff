#include "braid/core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace braid {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough to bridge the gap between two ops of a decode step (a few microseconds), short enough
// not to burn a core that somebody else needs.
constexpr int kSpins = 4000;

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

// A loop is published by opening it and raising `epoch`. A worker that sees the new epoch enters by
// raising `inside`, looks whether the loop is still open, drains `next` and leaves. The caller
// drains too, closes the loop and waits only for those inside: a worker that the system does not
// run delays nobody. The fields of a loop are written while it is closed and nobody is inside; one
// who enters then finds it closed, or the new loop complete.
struct ThreadPool::Shared {
  std::atomic<uint64_t> epoch{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> inside{0};
  std::atomic<bool> open{false};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  int64_t count = 0, grain = 1;
  void* body = nullptr;
  Call call = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  void drain(int worker) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      call(body, begin, std::min(count, begin + grain), worker);
    }
  }

  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      int spins = 0;
      while (epoch.load(std::memory_order_acquire) == seen && !stop.load()) {
        if (++spins < kSpins) {
          pause_cpu();
          continue;
        }
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return epoch.load() != seen || stop.load(); });
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      seen = epoch.load(std::memory_order_acquire);
      inside.fetch_add(1);
      if (open.load()) drain(worker);
      inside.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int threads)
    : shared_(std::make_unique<Shared>()), size_(threads > 0 ? threads : available_cores()) {
  for (int i = 1; i < size_; ++i) shared_->workers.emplace_back([this, i] { shared_->work(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stop = true;
  }
  shared_->wake.notify_all();
  for (auto& worker : shared_->workers) worker.join();
}

void ThreadPool::run(int64_t count, int64_t grain, void* body, Call call) {
  Shared& s = *shared_;
  if (size_ == 1 || count <= grain) {
    for (int64_t i = 0; i < count; i += grain) call(body, i, std::min(count, i + grain), 0);
    return;
  }
  s.count = count;
  s.grain = grain;
  s.body = body;
  s.call = call;
  s.next.store(0, std::memory_order_relaxed);
  s.open.store(true);
  s.epoch.fetch_add(1);
  if (s.sleepers.load() > 0) {
    { const std::lock_guard lock(s.mutex); }  // a worker between its test and its wait
    s.wake.notify_all();
  }
  s.drain(0);
  s.open.store(false);
  for (int spins = 0; s.inside.load() != 0; ++spins) {
    if (spins < kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace braid
