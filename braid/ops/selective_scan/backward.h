#pragma once

#include <cstdint>

#include "braid/ops/selective_scan/kernels.h"
#include "braid/ops/selective_scan/scan.h"

namespace braid::cpu {

inline constexpr int kMostStates = 4;                                         // of a tile
inline constexpr int64_t kTileRows = kScanTokens * kMostStates * kScanLanes;  // vectors of a tile

// A worker's scratch, per token of a block, and what a block of channels gathers over the tokens,
// per state. Rows of kScanChannels.
struct BackwardScratch {
  float *dt, *u, *x, *y, *dy, *du, *ddt;
  float *decay, *decayed, *sum_b, *sum_c;  // (tokens, states of a tile, lanes)
  float *g, *d_rate, *db, *dc;
  float *d_skip, *d_bias;

  BackwardScratch(float* worker, float* gathered, int64_t state) {
    for (float** rows : {&dt, &u, &x, &y, &dy, &du, &ddt}) *rows = take(&worker, kScanRows);
    for (float** tile : {&decay, &decayed, &sum_b, &sum_c}) *tile = take(&worker, kTileRows);
    for (float** rows : {&g, &d_rate, &db, &dc}) *rows = take(&gathered, state * kScanChannels);
    for (float** row : {&d_skip, &d_bias}) *row = take(&gathered, kScanChannels);
  }
  static float* take(float** from, int64_t size) {
    float* at = *from;
    *from += size;
    return at;
  }
  static constexpr int64_t kWorker = 7 * kScanRows + 4 * kTileRows;
  static int64_t gathered(int64_t state) { return (4 * state + 2) * kScanChannels; }
};

// The blocks of tokens in the order of the vjp: sequence by sequence, each from its last one.
struct BackwardCursor {
  const SelectiveScanCells* cells;
  int64_t s = 0, i = 0, m = -1;  // sequence, cell, mark of it

  explicit BackwardCursor(const SelectiveScanCells& all) : cells(&all) {
    if (!done()) i = all.firsts[1];
    settle();
  }
  bool done() const { return s == cells->sequences; }
  bool begins_sequence() const {
    return i == cells->firsts[s + 1] - 1 && m == cells->cells[i].marks() - 1;
  }
  bool ends_sequence() const { return i == cells->firsts[s] && m == 0; }
  void next() {
    --m;
    settle();
  }

 private:
  void settle() {
    while (!done() && m < 0) {
      if (--i >= cells->firsts[s]) {
        m = cells->cells[i].marks() - 1;
      } else if (++s, !done()) {
        i = cells->firsts[s + 1];
      }
    }
  }
};

}  // namespace braid::cpu
