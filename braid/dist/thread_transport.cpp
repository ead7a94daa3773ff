#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

#include "braid/core/error.h"
#include "braid/dist/transport.h"

namespace braid {
namespace {

// What the ranks of one process share. Every field is guarded by `mutex`, but the parts that
// `posted` points to: they are read between the two gates of an exchange, while their owner waits.
class ThreadGroup {
 public:
  ThreadGroup(int ranks, const TransportOptions& options)
      : ranks_(static_cast<size_t>(ranks)),
        patience_(options.patience),
        posted_(ranks_),
        arrived_(ranks_, 0),
        left_(ranks_, false),
        mail_(ranks_ * ranks_) {}

  size_t ranks() const { return ranks_; }

  // Returns when every rank has come to its gate number `count` (of its own arrivals).
  void gate(size_t rank) {
    std::unique_lock lock(mutex_);
    const uint64_t count = ++arrived_[rank];
    changed_.notify_all();
    wait(lock, rank, [&] {
      for (size_t r = 0; r < ranks_; ++r) {
        if (arrived_[r] < count) return static_cast<int>(r);
      }
      return -1;
    });
  }

  void post(size_t rank, std::span<const ByteView> parts) {
    std::lock_guard lock(mutex_);
    posted_[rank] = parts;
  }
  // After the gate that follows `post`.
  ByteView posted(size_t from, size_t to) {
    std::lock_guard lock(mutex_);
    return posted_[from][to];
  }

  void put(size_t from, size_t to, ByteView message) {
    std::vector<std::byte> copy(message.begin(), message.end());
    std::lock_guard lock(mutex_);
    mail_[to * ranks_ + from].push_back(std::move(copy));
    changed_.notify_all();
  }
  std::vector<std::byte> take(size_t from, size_t to) {
    std::unique_lock lock(mutex_);
    auto& box = mail_[to * ranks_ + from];
    wait(lock, to, [&] { return box.empty() ? static_cast<int>(from) : -1; });
    std::vector<std::byte> message = std::move(box.front());
    box.pop_front();
    return message;
  }

  // The end of a rank's body: nobody need wait for it any more.
  void leave(size_t rank) {
    std::lock_guard lock(mutex_);
    left_[rank] = true;
    changed_.notify_all();
  }
  // The first failure is the cause of those that follow it.
  void fail_with(size_t rank, std::exception_ptr cause, std::string what) {
    std::lock_guard lock(mutex_);
    if (cause_ == nullptr) {
      cause_ = std::move(cause);
      failure_ = "transport: rank " + std::to_string(rank) + " failed: " + std::move(what);
    }
    changed_.notify_all();
  }
  void rethrow() {
    if (cause_ != nullptr) std::rethrow_exception(cause_);
  }

 private:
  // Until `missing()`, the rank that is waited for, is -1.
  template <class Missing>
  void wait(std::unique_lock<std::mutex>& lock, size_t rank, Missing&& missing) {
    const auto deadline = std::chrono::steady_clock::now() + patience_;
    for (;;) {
      const int peer = missing();
      if (peer < 0) return;
      check(failure_.empty(), ErrorKind::kIo, "{}", failure_);
      check(!left_[static_cast<size_t>(peer)], ErrorKind::kIo,
            "transport: rank {} waits for rank {}, which has ended", rank, peer);
      if (changed_.wait_until(lock, deadline) == std::cv_status::timeout) {
        check(missing() < 0, ErrorKind::kIo, "transport: rank {} waited {} ms for rank {}", rank,
              patience_.count(), peer);
      }
    }
  }

  const size_t ranks_;
  const std::chrono::milliseconds patience_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::span<const ByteView>> posted_;
  std::vector<uint64_t> arrived_;
  std::vector<bool> left_;
  std::vector<std::deque<std::vector<std::byte>>> mail_;  // (to, from)
  std::string failure_;
  std::exception_ptr cause_;
};

class ThreadTransport final : public Transport {
 public:
  ThreadTransport(ThreadGroup& group, size_t rank) : group_(&group), rank_(rank) {}

  std::string_view name() const override { return "threads"; }
  int rank() const override { return static_cast<int>(rank_); }
  int size() const override { return static_cast<int>(group_->ranks()); }

  ReceivedParts all_to_all(std::span<const ByteView> parts) override {
    check(parts.size() == group_->ranks(), "all_to_all: {} parts, want one for each of {} ranks",
          parts.size(), group_->ranks());
    group_->post(rank_, parts);
    group_->gate(rank_);
    ReceivedParts received{.bytes = {}, .offsets = {0}};
    for (size_t r = 0; r < group_->ranks(); ++r) {
      received.offsets.push_back(received.offsets.back() + group_->posted(r, rank_).size());
    }
    received.bytes.reserve(received.offsets.back());
    for (size_t r = 0; r < group_->ranks(); ++r) {
      const ByteView part = group_->posted(r, rank_);
      received.bytes.insert(received.bytes.end(), part.begin(), part.end());
    }
    group_->gate(rank_);  // `parts` are the caller's again
    return received;
  }

  void send(int to, ByteView message) override {
    check(0 <= to && to < size(), "send: to rank {}, want 0..{}", to, size() - 1);
    group_->put(rank_, static_cast<size_t>(to), message);
  }
  std::vector<std::byte> receive(int from) override {
    check(0 <= from && from < size(), "receive: from rank {}, want 0..{}", from, size() - 1);
    return group_->take(static_cast<size_t>(from), rank_);
  }

 private:
  ThreadGroup* group_;
  size_t rank_;
};

}  // namespace

void run_on_threads(int ranks, const TransportOptions& options,
                    const std::function<void(Transport&)>& body) {
  constexpr int kMostRanks = 1024;
  check(1 <= ranks && ranks <= kMostRanks, "threads: {} ranks, want 1..{}", ranks, kMostRanks);
  ThreadGroup group(ranks, options);
  const auto run = [&](size_t rank) {
    ThreadTransport transport(group, rank);
    try {
      body(transport);
    } catch (const std::exception& error) {
      group.fail_with(rank, std::current_exception(), error.what());
    } catch (...) {
      group.fail_with(rank, std::current_exception(), "an exception of unknown type");
    }
    group.leave(rank);
  };
  {
    std::vector<std::jthread> threads;
    try {
      for (size_t r = 1; r < group.ranks(); ++r) threads.emplace_back(run, r);
    } catch (const std::exception& error) {  // the system gives no more threads
      group.fail_with(threads.size() + 1, std::current_exception(), error.what());
    }
    run(0);
  }
  group.rethrow();
}

}  // namespace braid
