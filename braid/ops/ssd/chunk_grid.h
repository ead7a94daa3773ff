#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "braid/core/sequence_batch.h"
#include "braid/ops/ssd/kernels.h"

namespace braid {

/// The grid of chunks: multiples of the chunk length from each sequence's own beginning.
struct ChunkGrid {
  std::vector<SsdChunk> cells;
  std::vector<int64_t> firsts{0};

  ChunkGrid(const SequenceBatch& batch, int64_t chunk) {
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      const auto i = static_cast<size_t>(s);
      int64_t row = batch.offsets[i], count = chunk - batch.starts[i] % chunk;
      for (; row < batch.offsets[i + 1]; row += count, count = chunk) {
        count = std::min(count, batch.offsets[i + 1] - row);
        cells.push_back({.sequence = s, .begin = row, .count = count});
      }
      firsts.push_back(std::ssize(cells));
    }
  }
  SsdChunkDims dims(const SsdDims& base, int64_t chunk) const {
    return {.base = base,
            .chunk = chunk,
            .chunks = std::ssize(cells),
            .cells = cells.data(),
            .firsts = firsts.data()};
  }
};

}  // namespace braid
