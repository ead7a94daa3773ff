#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct Wkv7Case {
  const char* name;
  std::vector<int64_t> lengths;  // of the sequences
  int64_t heads, head_dim;
};

inline std::vector<Wkv7Case> wkv7_test_cases() {
  return {{"one token", {1}, 1, 8},        {"a short head", {5, 0, 17}, 3, 8},
          {"odd vectors", {33, 1}, 2, 24}, {"three vectors and a half", {18}, 1, 56},
          {"usual", {63, 65, 16}, 2, 64},  {"wide", {31}, 1, 128},
          {"many", {1, 1, 1, 2, 3}, 2, 32}};
}

/// RWKV-7 0.1B: 12 heads of 64.
inline std::vector<Wkv7Case> wkv7_bench_cases() {
  return {{"prefill", {2048}, 12, 64}, {"decode", {1}, 12, 64}, {"train", {512, 512}, 12, 64}};
}

}  // namespace braid
