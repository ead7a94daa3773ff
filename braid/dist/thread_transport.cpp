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

// What the ranks of one process share, all of it guarded by `mutex`. Messages are copied in and
// out: a rank that fails may leave while others still read.
class ThreadGroup {
 public:
  // Parts of exchanges and messages of their own; each kind keeps its order.
  enum Kind : size_t { kPart, kMessage, kKinds };
  using Bytes = std::vector<std::byte>;

  ThreadGroup(int ranks, const TransportOptions& options)
      : ranks_(static_cast<size_t>(ranks)),
        patience_(options.patience),
        left_(ranks_, false),
        mail_(kKinds * ranks_ * ranks_) {}

  size_t ranks() const { return ranks_; }

  void put(Kind kind, size_t from, size_t to, ByteView message) {
    Bytes copy(message.begin(), message.end());
    std::lock_guard lock(mutex_);
    box(kind, from, to).push_back(std::move(copy));
    changed_.notify_all();
  }
  Bytes take(Kind kind, size_t from, size_t to) {
    std::unique_lock lock(mutex_);
    std::deque<Bytes>& mail = box(kind, from, to);
    const auto deadline = std::chrono::steady_clock::now() + patience_;
    bool late = false;
    while (mail.empty()) {
      check(failure_.empty(), ErrorKind::kIo, "{}", failure_);
      check(!left_[from], ErrorKind::kIo, "transport: rank {} waits for rank {}, which has ended",
            to, from);
      check(!late, ErrorKind::kIo, "transport: rank {} waited {} ms for rank {}", to,
            patience_.count(), from);
      late = changed_.wait_until(lock, deadline) == std::cv_status::timeout;
    }
    Bytes message = std::move(mail.front());
    mail.pop_front();
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
  std::deque<Bytes>& box(Kind kind, size_t from, size_t to) {
    return mail_[(kind * ranks_ + to) * ranks_ + from];
  }

  const size_t ranks_;
  const std::chrono::milliseconds patience_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> left_;
  std::vector<std::deque<Bytes>> mail_;  // (kind, to, from)
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
    for (size_t r = 0; r < group_->ranks(); ++r) {
      group_->put(ThreadGroup::kPart, rank_, r, parts[r]);
    }
    ReceivedParts received{.bytes = {}, .offsets = {0}};
    for (size_t r = 0; r < group_->ranks(); ++r) {
      const auto part = group_->take(ThreadGroup::kPart, r, rank_);
      received.bytes.insert(received.bytes.end(), part.begin(), part.end());
      received.offsets.push_back(received.bytes.size());
    }
    return received;
  }

  void send(int to, ByteView message) override {
    check(0 <= to && to < size(), "send: to rank {}, want 0..{}", to, size() - 1);
    group_->put(ThreadGroup::kMessage, rank_, static_cast<size_t>(to), message);
  }
  std::vector<std::byte> receive(int from) override {
    check(0 <= from && from < size(), "receive: from rank {}, want 0..{}", from, size() - 1);
    return group_->take(ThreadGroup::kMessage, static_cast<size_t>(from), rank_);
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
