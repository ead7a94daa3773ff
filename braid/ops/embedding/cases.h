#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct EmbeddingCase {
  int64_t rows, vocab, width;
};

inline const std::vector<EmbeddingCase> kEmbeddingBench = {{1, 50288, 768}, {2048, 50288, 768}};

}  // namespace braid::cases
