// The only file that knows MPI. Built without it (BRAID_HAS_MPI unset), MPI is refused.
#include "braid/core/error.h"
#include "braid/dist/transport.h"

#ifdef BRAID_HAS_MPI
#include <mpi.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <string>
#include <thread>

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

// One message of MPI counts its bytes in an int; longer parts travel in pieces, in order.
constexpr size_t kPiece = size_t{1} << 30;
constexpr int kPartTag = 1, kLengthTag = 2, kMessageTag = 3;

void expect(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(ErrorKind::kIo, "mpi: {}: {}", call, std::string_view(text, static_cast<size_t>(length)));
}

template <class F>
void each_piece(size_t bytes, F&& f) {
  for (size_t at = 0; at < bytes; at += kPiece) {
    f(at, static_cast<int>(std::min(kPiece, bytes - at)));
  }
}

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(const TransportOptions& options) : patience_(options.patience) {
    expect(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    expect(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    expect(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    expect(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  // Not on the way out of a failure: the process ends by MPI_Abort then.
  void close() {
    for (Outgoing& message : outgoing_) wait(message.requests, "the end of a send");
    outgoing_.clear();
    expect(MPI_Comm_free(&comm_), "MPI_Comm_free");
  }

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  ReceivedParts all_to_all(std::span<const ByteView> parts) override {
    check(static_cast<int>(parts.size()) == size_,
          "all_to_all: {} parts, want one for each of {} ranks", parts.size(), size_);
    std::vector<int64_t> sizes, incoming(parts.size());
    for (const ByteView& part : parts) sizes.push_back(static_cast<int64_t>(part.size()));
    std::vector<MPI_Request> requests(1);
    expect(MPI_Ialltoall(sizes.data(), 1, MPI_INT64_T, incoming.data(), 1, MPI_INT64_T, comm_,
                         requests.data()),
           "MPI_Ialltoall");
    wait(requests, "the sizes of an exchange");

    ReceivedParts received{.bytes = {}, .offsets = {0}};
    for (const int64_t bytes : incoming) {
      received.offsets.push_back(received.offsets.back() + static_cast<size_t>(bytes));
    }
    received.bytes.resize(received.offsets.back());
    requests.clear();
    for (int r = 0; r < size_; ++r) {
      std::byte* to = received.bytes.data() + received.offsets[static_cast<size_t>(r)];
      each_piece(static_cast<size_t>(incoming[static_cast<size_t>(r)]), [&](size_t at, int n) {
        expect(MPI_Irecv(to + at, n, MPI_BYTE, r, kPartTag, comm_, &requests.emplace_back()),
               "MPI_Irecv");
      });
    }
    for (int r = 0; r < size_; ++r) post(parts[static_cast<size_t>(r)], r, kPartTag, requests);
    wait(requests, "an exchange");
    return received;
  }

  void send(int to, ByteView message) override {
    check(0 <= to && to < size_, "send: to rank {}, want 0..{}", to, size_ - 1);
    while (!outgoing_.empty() && done(outgoing_.front().requests)) outgoing_.pop_front();
    Outgoing& kept = outgoing_.emplace_back();  // a deque: addresses stay
    kept.bytes.assign(message.begin(), message.end());
    kept.length = static_cast<int64_t>(message.size());
    expect(MPI_Isend(&kept.length, 1, MPI_INT64_T, to, kLengthTag, comm_,
                     &kept.requests.emplace_back()),
           "MPI_Isend");
    post(kept.bytes, to, kMessageTag, kept.requests);
  }

  std::vector<std::byte> receive(int from) override {
    check(0 <= from && from < size_, "receive: from rank {}, want 0..{}", from, size_ - 1);
    const std::string peer = "a message of rank " + std::to_string(from);
    int64_t length = 0;
    std::vector<MPI_Request> requests(1);
    expect(MPI_Irecv(&length, 1, MPI_INT64_T, from, kLengthTag, comm_, requests.data()),
           "MPI_Irecv");
    wait(requests, peer);
    std::vector<std::byte> message(static_cast<size_t>(length));
    requests.clear();
    each_piece(message.size(), [&](size_t at, int n) {
      expect(MPI_Irecv(message.data() + at, n, MPI_BYTE, from, kMessageTag, comm_,
                       &requests.emplace_back()),
             "MPI_Irecv");
    });
    wait(requests, peer);
    return message;
  }

 private:
  struct Outgoing {
    int64_t length = 0;
    std::vector<std::byte> bytes;
    std::vector<MPI_Request> requests;
  };

  void post(ByteView bytes, int to, int tag, std::vector<MPI_Request>& requests) {
    each_piece(bytes.size(), [&](size_t at, int n) {
      expect(MPI_Isend(bytes.data() + at, n, MPI_BYTE, to, tag, comm_, &requests.emplace_back()),
             "MPI_Isend");
    });
  }

  static bool done(std::vector<MPI_Request>& requests) {
    int all = 0;
    expect(
        MPI_Testall(static_cast<int>(requests.size()), requests.data(), &all, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    return all != 0;
  }

  // Spins for the latency of a quick answer, then leaves the core to whoever has work.
  void wait(std::vector<MPI_Request>& requests, std::string_view what) {
    constexpr int kSpins = 200;
    const auto deadline = Clock::now() + patience_;
    for (int tries = 0; !done(requests); ++tries) {
      if (tries < kSpins) continue;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      check(Clock::now() < deadline, ErrorKind::kIo, "mpi: rank {} waited {} ms for {}", rank_,
            patience_.count(), what);
    }
  }

  std::chrono::milliseconds patience_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::deque<Outgoing> outgoing_;
};

}  // namespace

bool has_mpi() { return true; }

void run_on_mpi(const TransportOptions& options, const std::function<void(Transport&)>& body,
                const std::function<void(int rank, std::string_view what)>& on_error) {
  int started = 0, provided = 0;
  expect(MPI_Initialized(&started), "MPI_Initialized");
  check(started == 0, "mpi: has run in this process already, want one run");
  expect(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  int rank = 0;
  std::string what;
  try {
    check(provided >= MPI_THREAD_FUNNELED, ErrorKind::kUnsupported,
          "mpi: this MPI allows no threads beside it, want MPI_THREAD_FUNNELED");
    expect(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
    MpiTransport transport(options);
    body(transport);
    transport.close();
    expect(MPI_Finalize(), "MPI_Finalize");
    return;
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
    what = "an exception of unknown type";
  }
  on_error(rank, what);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

}  // namespace braid

#else

namespace braid {

bool has_mpi() { return false; }

void run_on_mpi(const TransportOptions&, const std::function<void(Transport&)>&,
                const std::function<void(int, std::string_view)>&) {
  fail(ErrorKind::kUnsupported,
       "mpi: this build has none, want one configured where an MPI (libopenmpi-dev) is installed");
}

}  // namespace braid

#endif
