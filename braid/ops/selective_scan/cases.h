#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct SelectiveScanCase {
  const char* name;
  std::vector<int64_t> lengths;
  int64_t channels, state;
  int64_t chunk = 256;
  bool invariant = false;
};

/// Odd on purpose: lengths around the blocks of tokens, channels around vectors and blocks of them,
/// states around the tiles, empty sequences.
inline std::vector<SelectiveScanCase> selective_scan_test_cases() {
  std::vector<SelectiveScanCase> cases;
  for (const int64_t length : {1, 31, 32, 33, 63, 65, 200}) {
    cases.push_back({"one", {length}, 5, 3, 64});
  }
  cases.push_back({"usual", {130}, 128, 16, 32});
  cases.push_back({"wide", {40}, 209, 7, 16});
  cases.push_back({"many states", {70}, 17, 37, 16});
  cases.push_back({"one state", {70}, 64, 1, 64});
  cases.push_back({"packed", {1, 65, 0, 17, 1, 130}, 72, 16, 32});
  cases.push_back({"invariant", {130}, 72, 16, 32, true});
  cases.push_back({"invariant packed", {1, 65, 0, 17}, 33, 9, 16, true});
  return cases;
}

/// Mamba 130M: prefill, decode of 16 sequences.
inline std::vector<SelectiveScanCase> selective_scan_bench_cases() {
  return {{"prefill 130M", {2048}, 1536, 16},
          {"decode 130M x16", std::vector<int64_t>(16, 1), 1536, 16}};
}

}  // namespace braid
