// Goal: every rank gets what was sent to it, sums have one order, and the end of one rank is the
// end of all, soon and by name.
#include "braid/dist/transport.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>

#include "braid/core/error.h"
#include "tests/dist/transport_laws.h"

namespace braid {
namespace {

using std::chrono::milliseconds;

TEST(ThreadTransport, KeepsTheLaws) {
  for (const int ranks : {1, 2, 3, 8}) run_on_threads(ranks, {}, check_transport_laws);
}

TEST(ThreadTransport, AFailureEndsAllAndIsTheOneThrown) {
  std::mutex mutex;
  std::vector<std::string> others;
  const auto body = [&](Transport& transport) {
    transport.barrier();
    check(transport.rank() != 2, ErrorKind::kFormat, "a broken file");
    try {
      if (transport.rank() == 0) transport.receive(2);
      transport.barrier();
    } catch (const Error& error) {
      const std::lock_guard lock(mutex);
      others.push_back(error.what());
      throw;
    }
  };
  try {
    run_on_threads(4, {}, body);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "a broken file");
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
  }
  EXPECT_EQ(others, std::vector<std::string>(3, "transport: rank 2 failed: a broken file"));
}

TEST(ThreadTransport, ARankThatLeavesIsMissed) {
  try {
    run_on_threads(3, {}, [](Transport& transport) {
      if (transport.rank() != 1) transport.barrier();
    });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("waits for rank 1, which has ended"),
              std::string::npos)
        << error.what();
  }
}

TEST(ThreadTransport, PatienceEnds) {
  const auto start = std::chrono::steady_clock::now();
  try {
    run_on_threads(2, {.patience = milliseconds(50)}, [](Transport& transport) {
      if (transport.rank() == 0) std::this_thread::sleep_for(milliseconds(400));
      transport.barrier();
    });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "transport: rank 1 waited 50 ms for rank 0");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(ThreadTransport, RefusesImpossibleCalls) {
  EXPECT_THROW(run_on_threads(0, {}, [](Transport&) {}), Error);
  const auto to_nobody = [](Transport& t) { t.send(2, {}); };
  EXPECT_THROW(run_on_threads(2, {}, to_nobody), Error);
  const auto too_few = [](Transport& t) { t.all_to_all(std::array<ByteView, 1>{}); };
  EXPECT_THROW(run_on_threads(2, {}, too_few), Error);
  const auto uneven = [](Transport& t) {
    std::vector<int64_t> values(static_cast<size_t>(t.rank() + 1));
    t.all_reduce_sum(std::span<int64_t>(values));
  };
  EXPECT_THROW(run_on_threads(2, {}, uneven), Error);
}

TEST(MpiTransport, IsRefusedWhereTheBuildHasNone) {
  if (has_mpi()) GTEST_SKIP() << "this build has MPI: tests/dist runs it under mpirun";
  EXPECT_THROW(run_on_mpi(
                   {}, [](Transport&) {}, [](int, std::string_view) {}),
               Error);
}

}  // namespace
}  // namespace braid
