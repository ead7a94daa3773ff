#pragma once

// The instruction sets of this machine, for tests of kernels that are compiled for several.

#include <gtest/gtest.h>

#include <cstdint>

#include "braid/simd/targets.h"
// After targets.h, which it must see.
#include <hwy/targets.h>

namespace braid::test {

/// Runs the body once for each instruction set that this machine has.
template <class Body>
void on_every_target(Body&& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    body();
    hwy::SetSupportedTargetsForTest(0);
  }
}

}  // namespace braid::test
