#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace braid {

/// A fixed set of workers that run one loop at a time. The caller is worker 0.
///
/// Which worker takes which range is not defined, so a loop body must write only what belongs to
/// its own indices; then the result does not depend on the number of threads. An exception must
/// not leave a body (kernels do not throw). Not reentrant: one caller, no nested loops.
class ThreadPool {
 public:
  /// 0 asks for one thread per core available to the process.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  /// Calls body(begin, end) or body(begin, end, worker) over disjoint ranges that cover [0, count),
  /// each of at most `grain` indices, taken in order by whichever worker is free.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    using Fn = std::remove_reference_t<Body>;
    run(count, grain < 1 ? 1 : grain, const_cast<std::remove_const_t<Fn>*>(&body),
        [](void* self, int64_t begin, int64_t end, int worker) {
          if constexpr (std::is_invocable_v<Fn&, int64_t, int64_t, int>) {
            (*static_cast<Fn*>(self))(begin, end, worker);
          } else {
            (*static_cast<Fn*>(self))(begin, end);
          }
        });
  }

 private:
  using Call = void (*)(void*, int64_t, int64_t, int);
  void run(int64_t count, int64_t grain, void* body, Call call);

  struct Shared;
  std::unique_ptr<Shared> shared_;
  int size_;
};

}  // namespace braid
