#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace braid {

using ByteView = std::span<const std::byte>;

/// The bytes of an array of plain values.
template <class T>
ByteView bytes_of(std::span<const T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(values);
}

/// What a rank received in one exchange: a run of bytes from every rank, end to end. The runs have
/// no alignment beyond their offset's; read values with memcpy.
struct ReceivedParts {
  std::vector<std::byte> bytes;
  std::vector<size_t> offsets;  // (ranks + 1)

  ByteView from(int rank) const {
    const auto r = static_cast<size_t>(rank);
    return ByteView(bytes).subspan(offsets[r], offsets[r + 1] - offsets[r]);
  }
};

struct TransportOptions {
  /// How long a rank waits for its peers before it calls them lost.
  std::chrono::milliseconds patience{600'000};
};

/// Messages between the ranks 0 .. size() - 1 of a group, each of which owns one Transport.
///
/// Collective calls are made by all ranks in the same order. A rank that fails or leaves while
/// others wait for it ends their calls with Error(kIo) that names it; after that the transport is
/// of no more use. Nobody waits longer than TransportOptions::patience.
///
/// Thread safety: one thread at a time for each rank's Transport.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Collective: parts[r] goes to rank r, itself included; any part may be empty.
  virtual ReceivedParts all_to_all(std::span<const ByteView> parts) = 0;

  /// Point to point. `send` copies the message and does not wait; messages of one pair of ranks
  /// arrive in order. `receive` waits for the next one of `from`.
  virtual void send(int to, ByteView message) = 0;
  virtual std::vector<std::byte> receive(int from) = 0;

  /// Collective, by all_to_all: every rank's bytes at every rank.
  ReceivedParts all_gather(ByteView mine);
  /// Collective: sums element by element, added in the order of the ranks, so that every rank holds
  /// the same bits. Throws Error(kUsage) where the lengths differ.
  void all_reduce_sum(std::span<int64_t> values);
  void all_reduce_sum(std::span<float> values);
  /// Collective: returns once every rank has called it.
  void barrier();
};

/// Runs `body` on `ranks` threads, each with its Transport; rank 0 is the calling thread. The first
/// failure of a body ends the others and is thrown again when all have returned.
void run_on_threads(int ranks, const TransportOptions& options,
                    const std::function<void(Transport&)>& body);

/// True where this build speaks MPI.
bool has_mpi();

/// Runs `body` on this process's rank of MPI_COMM_WORLD (mpirun starts one process a rank), once in
/// a process. If it throws, `on_error` is called with what() and then MPI_Abort, which ends this
/// process and all others with a code that is not zero: what MPI offers to wake peers that wait.
/// Throws Error(kUnsupported) where the build has no MPI.
void run_on_mpi(const TransportOptions& options, const std::function<void(Transport&)>& body,
                const std::function<void(int rank, std::string_view what)>& on_error);

}  // namespace braid
