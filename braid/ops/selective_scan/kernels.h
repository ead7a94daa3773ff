#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Tokens between the states that the forward pass keeps for the vjp.
inline constexpr int64_t kSelectiveScanMark = 32;

/// Sizes of one call; strides are elements between rows. Tables (N, padded()) hold what belongs to
/// a channel and a state, channels last, zero beyond the last channel.
struct SelectiveScanDims {
  int64_t tokens, channels, state;  // T, E, N
  int64_t x_stride, dt_stride, b_stride, c_stride, z_stride;
  /// b and c are tables and dt_raw is null.
  bool invariant = false;

  constexpr int64_t padded() const { return (channels + 15) / 16 * 16; }
};

/// A run of tokens of one sequence. Its states before tokens begin, begin + 32, ... are marks
/// first_mark, first_mark + 1, ...
struct SelectiveScanCell {
  int64_t sequence, begin, count, first_mark;

  constexpr int64_t marks() const { return (count + kSelectiveScanMark - 1) / kSelectiveScanMark; }
};

struct SelectiveScanCells {
  int64_t count;
  const SelectiveScanCell* cells;  // in the order of the rows
  int64_t sequences;
  const int64_t* firsts;  // (S + 1): cells [firsts[s], firsts[s + 1]) are those of sequence s
};

/// What the tokens bring along: see SelectiveScanInputs. d, z: null where absent.
struct SelectiveScanOperands {
  const float *x, *dt_raw, *b, *c, *dt_bias, *d, *z;
  const float* rate;  // (N, padded): A log2(e)
};

/// What a forward pass leaves; each may be null.
struct SelectiveScanOutputs {
  float* y = nullptr;        // (T, E)
  float* marks = nullptr;    // (marks, N, E)
  float* dt_sums = nullptr;  // (cells, E): sum of dt over each cell
};

/// Gradients. da_log (E, N); dd, dz null where absent; db, dc (T, N), or (E, N) where invariant;
/// d_dt_raw null where invariant.
struct SelectiveScanGrads {
  float *dx, *d_dt_raw, *db, *dc, *d_dt_bias, *da_log, *dd, *dz;
};

namespace cpu {

/// table (N, padded) <- transpose of x (E, N); with `rates` -exp(x) log2(e) of it.
void selective_scan_table(ThreadPool& threads, const SelectiveScanDims& dims, bool rates,
                          const float* x, float* table);

/// Floats of scratch for one worker of the forward pass, and for all of the vjp.
int64_t selective_scan_scratch(const SelectiveScanDims& dims);
int64_t selective_scan_vjp_scratch(const SelectiveScanDims& dims, int64_t threads);
/// Floats of scratch for the parts of db and dc.
int64_t selective_scan_vjp_parts(const SelectiveScanDims& dims);

/// Scans every cell from h0[i] (N, E) (null: zero) to ht[i] (null: not wanted; may be h0[i]).
void selective_scan(ThreadPool& threads, const SelectiveScanDims& dims,
                    const SelectiveScanCells& cells, const SelectiveScanOperands& in,
                    const float* const* h0, float* const* ht, float* scratch,
                    const SelectiveScanOutputs& out);

/// states (cells, N, E): what each cell adds to zero -> the state before it. Sequence s starts from
/// h0[s] (null: zero).
void selective_scan_carry(ThreadPool& threads, const SelectiveScanDims& dims,
                          const SelectiveScanCells& cells, const float* rate, const float* dt_sums,
                          const float* const* h0, float* states);

/// From dy (T, E) with rows dy_stride apart and d_final[s] (N, E) (null: zero) to all gradients and
/// d_initial[s] (null: not wanted).
void selective_scan_vjp(ThreadPool& threads, const SelectiveScanDims& dims,
                        const SelectiveScanCells& cells, const SelectiveScanOperands& in,
                        const float* marks, const float* dy, int64_t dy_stride,
                        const float* const* d_final, float* const* d_initial, float* scratch,
                        float* parts, const SelectiveScanGrads& out);

}  // namespace cpu
}  // namespace braid
