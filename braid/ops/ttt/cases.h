#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/ttt/ttt.h"

namespace braid {

struct TttCase {
  const char* name;
  std::vector<int64_t> lengths;
  TttOptions options;
};

/// Lengths around the mini-batch, sizes that are no multiple of a vector, empty sequences, both
/// inner models, several steps, each option off.
inline std::vector<TttCase> ttt_test_cases() {
  const TttOptions linear{.heads = 2, .head_dim = 16, .mini_batch = 16};
  const TttOptions mlp{.heads = 2, .head_dim = 8, .hidden = 32, .mini_batch = 16};
  TttOptions odd = linear, odd_mlp = mlp, plain = linear, steps = linear, mlp_steps = mlp;
  odd.head_dim = 33, odd.mini_batch = 5;
  odd_mlp.head_dim = 5, odd_mlp.hidden = 19, odd_mlp.mini_batch = 7;
  plain.norm = plain.residual = false;
  steps.steps = 3;
  mlp_steps.steps = 2, mlp_steps.mini_batch = 4;
  return {{"one", {1}, linear},
          {"one mini-batch", {16}, linear},
          {"packed", {1, 65, 0, 17, 1, 40}, linear},
          {"odd", {23}, odd},
          {"plain", {20}, plain},
          {"steps", {35}, steps},
          {"mlp", {3, 49}, mlp},
          {"odd mlp", {23, 7}, odd_mlp},
          {"mlp steps", {19}, mlp_steps}};
}

/// The sizes of the published 125M models: prefill, decode of 16 sequences.
inline std::vector<TttCase> ttt_bench_cases() {
  const TttOptions linear{.heads = 12, .head_dim = 64};
  TttOptions mlp = linear;
  mlp.hidden = 256;
  return {{"linear prefill 125m", {2048}, linear},
          {"linear decode 125m x16", std::vector<int64_t>(16, 1), linear},
          {"mlp prefill 125m", {2048}, mlp},
          {"mlp decode 125m x16", std::vector<int64_t>(16, 1), mlp}};
}

}  // namespace braid
