#pragma once

#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "braid/core/error.h"
#include "braid/dist/transport.h"

namespace braid {

inline std::string text_of(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline ByteView view_of(const std::string& text) {
  return std::as_bytes(std::span<const char>(text));
}

// What rank `from` sends to rank `to` in round `round`: of a length that differs for every pair and
// is sometimes 0, sometimes beyond what a transport buffers.
inline std::string letter(int from, int to, int round) {
  const size_t length = static_cast<size_t>((from * 7 + to * 3 + round) % 5);
  const std::string word = fmt::format("<{}>{}@{}", from, to, round);
  std::string text;
  const size_t times = length == 4 ? 40'000 : length;
  for (size_t i = 0; i < times; ++i) text += word;
  return text;
}

/// Body for every rank of a transport; throws what does not hold.
inline void check_transport_laws(Transport& t) {
  const int ranks = t.size(), me = t.rank();
  for (int round = 0; round < 6; ++round) {
    // A rank that comes late must not meet another round's parts.
    if (round % ranks == me) std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::vector<std::string> letters;
    std::vector<ByteView> parts;
    for (int r = 0; r < ranks; ++r) letters.push_back(letter(me, r, round));
    for (const std::string& text : letters) parts.push_back(view_of(text));
    const ReceivedParts got = t.all_to_all(parts);
    for (int r = 0; r < ranks; ++r) {
      check(text_of(got.from(r)) == letter(r, me, round),
            "all_to_all: round {}: {} got other bytes from {}", round, me, r);
    }
    // Everyone sends before anyone receives, and two messages of a pair keep their order.
    for (int twice = 0; twice < 2; ++twice) {
      for (int r = 0; r < ranks; ++r) t.send(r, view_of(letter(me, r, round + twice)));
    }
    for (int twice = 0; twice < 2; ++twice) {
      for (int r = ranks; r-- > 0;) {
        const std::vector<std::byte> message = t.receive(r);
        check(text_of(message) == letter(r, me, round + twice),
              "receive: {} got other bytes from {}", me, r);
      }
    }
  }
  std::vector<int64_t> counts{me, 1, int64_t{1} << (40 + me)};
  t.all_reduce_sum(std::span<int64_t>(counts));
  check(counts ==
            std::vector<int64_t>{ranks * (ranks - 1) / 2, ranks, ((int64_t{1} << ranks) - 1) << 40},
        "all_reduce: wrong counts");
  // Only the order 0, 1, 2, ... gives this: 1e8 swallows the small ones that come after it.
  std::vector<float> values{me == ranks - 1 ? 1e8f : 3.0f};
  float want = 0;
  for (int r = 0; r < ranks; ++r) want = (r == 0 ? 0.0f : want) + (r == ranks - 1 ? 1e8f : 3.0f);
  t.all_reduce_sum(std::span<float>(values));
  check(std::memcmp(values.data(), &want, sizeof(want)) == 0, "all_reduce: {} for {}", values[0],
        want);
  t.barrier();
}

}  // namespace braid
