#pragma once

#include <algorithm>
#include <cstdint>

#include "braid/ops/selective_scan/kernels.h"

namespace braid::cpu {

// A task takes a block of channels through a run of tokens, kSelectiveScanMark at a time: the rows
// of a block of tokens lie in scratch, kScanChannels apart, zero beyond the last channel.
inline constexpr int64_t kScanTokens = kSelectiveScanMark;
inline constexpr int64_t kScanChannels = 64;
inline constexpr int64_t kScanRows = kScanTokens * kScanChannels;
inline constexpr int64_t kScanLanes = 16;  // the most there are
// All channels of this many blocks of tokens are done before the next ones: every row lies on pages
// of its own, and those of one wave fit the table of translations.
inline constexpr int64_t kScanWave = 4;
inline constexpr int64_t kScanGrainWork = 8192;  // state elements worth a thread's while

struct SelectiveForward {
  SelectiveScanDims dims;
  SelectiveScanOperands in;
  SelectiveScanOutputs out;
};

// Channels [e0, e0 + width) of the marks [begin, end) of one cell.
struct SelectiveTask {
  SelectiveScanCell cell;
  int64_t index;  // of the cell
  int64_t begin, end;
  int64_t e0, width;
};

struct SelectiveBackward {
  SelectiveScanDims dims;
  SelectiveScanOperands in;
  const float* marks;
  const float* dy;
  int64_t dy_stride;
  float* parts;  // (blocks of channels, T, 2 N): db, dc
  SelectiveScanGrads out;
};

}  // namespace braid::cpu
