#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/lact/lact.h"

namespace braid {

struct LactCase {
  const char* name;
  std::vector<int64_t> lengths;
  LactOptions options;
};

/// Lengths around the chunk and the block of tokens, sizes that are no multiple of a vector, empty
/// sequences, momentum and muon on and off, matrices taller and wider than square.
inline std::vector<LactCase> lact_test_cases() {
  const LactOptions plain{.heads = 2, .head_dim = 8, .hidden = 8, .chunk = 16};
  LactOptions odd = plain, momentum = plain, muon = plain, both = plain, longer = plain;
  odd.head_dim = 5, odd.hidden = 19, odd.chunk = 7;
  momentum.momentum = true;
  muon.muon = true, muon.hidden = 12;
  both.muon = both.momentum = true, both.hidden = 6, both.chunk = 5;
  longer.chunk = 100;
  return {{"one", {1}, plain},
          {"one chunk", {16}, plain},
          {"packed", {1, 65, 0, 17, 1, 40}, plain},
          {"odd", {23}, odd},
          {"momentum", {50, 16}, momentum},
          {"muon", {40}, muon},
          {"both", {23, 7}, both},
          {"longer", {230}, longer}};
}

/// A layer of width 768 with four heads: prefill, decode of 16 sequences.
inline std::vector<LactCase> lact_bench_cases() {
  const LactOptions layer{.heads = 4, .head_dim = 192, .hidden = 192, .chunk = 512};
  return {{"prefill width 768", {2048}, layer},
          {"decode width 768 x16", std::vector<int64_t>(16, 1), layer}};
}

}  // namespace braid
