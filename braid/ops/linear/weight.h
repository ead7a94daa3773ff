#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "braid/core/context.h"
#include "braid/ops/linear/kernels.h"

namespace braid {

struct WeightOptions {
  DType packed_dtype = DType::kF32;  // or bf16
  /// Keeps the plain float32 matrix (the parameter) and a packed transpose for the vjp.
  bool trainable = false;
  /// Keeps the packed transpose of a weight that is not trained: for an op that multiplies by the
  /// matrix both ways at every call. CUDA needs none.
  bool both_ways = false;
};

/// A matrix (N outputs, K inputs) as kernels want it: packed once, read by prefill, decode and a
/// tied embedding alike. On CUDA it stays a plain matrix, and a trainable float32 one is the
/// parameter itself. A handle: copies are the same weight.
///
/// Thread safety: as Tensor; `repack` and `set_grad_id` must not run beside other uses.
class Weight {
 public:
  Weight() = default;

  /// Packs `plain` (N, K), f32, bf16 or f16 on the host, rows contiguous or strided. A mapped
  /// file's pages are dropped as they are packed, so both forms are never in memory together. A
  /// trainable weight keeps `plain` itself if that is writable float32 memory, else a float32 copy.
  static Weight make(Context& ctx, const Tensor& plain, const WeightOptions& options = {});

  /// One weight of the rows of several matrices (N_i, K) that share their input, such as q, k and v
  /// stored apart.
  static Weight concat_rows(Context& ctx, const std::vector<Tensor>& parts,
                            const WeightOptions& options = {});

  bool defined() const { return impl_ != nullptr; }
  int64_t rows() const;  // N
  int64_t cols() const;  // K
  DType dtype() const;   // of the packed form
  bool trainable() const;
  /// False if packing met an infinity or a NaN (on CUDA, only `make` looks).
  bool finite() const;
  size_t packed_bytes() const;

  /// The parameter (N, K) float32 with its gradient's identity; empty unless trainable.
  const Tensor& plain() const;
  void set_grad_id(uint64_t id);
  /// To be called after `plain` has changed (an optimiser step).
  void repack(Context& ctx);

  /// Row n, K values, as the products see it (of `plain` where there is one). CPU only.
  void row(int64_t n, float* out) const;
  /// A plain (N, K) copy on the host, f32 or bf16; exact for the dtype it is packed in.
  Tensor to_plain(Context& ctx, DType dtype) const;

  /// For kernels: the packed form, and that of the transpose (K outputs, N inputs), which is made
  /// for the call where the weight is not trainable.
  PackedMatrix matrix() const;
  const void* packed() const;
  PackedMatrix transposed_matrix() const;
  Tensor packed_transpose(Context& ctx) const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace braid
