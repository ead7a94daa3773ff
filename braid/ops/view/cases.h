#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct GatherRowsCase {
  int64_t picked, rows, width;
};

/// The rows whose logits are wanted.
inline const std::vector<GatherRowsCase> kGatherRowsBench = {{16, 2048, 768}, {1024, 2048, 768}};

}  // namespace braid::cases
