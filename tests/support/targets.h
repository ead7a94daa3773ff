#pragma once

// The instruction sets of this machine, for tests of kernels that are compiled for several.

#include <gtest/gtest.h>

#include <cstdint>

#include "braid/simd/bf16_dot.h"
#include "braid/simd/targets.h"
// After targets.h, which it must see.
#include <hwy/targets.h>

namespace braid::test {

/// Runs the body once for each instruction set that this machine has, and with the dot product of
/// bfloat16 pairs and without it.
template <class Body>
void on_every_target(Body&& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (const bool dot : {false, true}) {
      if (dot && !simd::has_bf16_dot()) continue;
      SCOPED_TRACE(testing::Message() << hwy::TargetName(target) << (dot ? " with dot" : ""));
      const simd::Bf16DotForTest use(dot);
      body();
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

}  // namespace braid::test
