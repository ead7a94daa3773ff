#include "braid/ops/embedding/embedding.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/core/table.h"
#include "braid/ops/embedding/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::embedding, &cuda::embedding>;
using Backward = Kernel<&cpu::embedding_vjp, &cuda::embedding_vjp>;

Tensor embedding(Context& ctx, std::span<const int32_t> ids, const Weight& table) {
  check(table.defined(), "embedding: the table is empty");
  for (const int32_t id : ids) {
    check(0 <= id && id < table.rows(), "embedding: id {}, want 0..{} (a vocabulary of {})", id,
          table.rows() - 1, table.rows());
  }
  const auto m = static_cast<int64_t>(ids.size());
  Tensor y = ctx.empty({m, table.cols()});
  const EmbeddingDims dims{.m = m, .table = table.matrix(), .y_row = table.cols()};
  Forward::run(ctx, "embedding", dims, Table<int32_t>(ctx, ids).data(),
               table.trainable() ? table.plain().f32() : nullptr, table.packed(), y.f32());
  if (Tape* tape = ctx.tape(); tape != nullptr && Tape::tracks(table.plain())) {
    tape->record({table.plain()}, y,
                 [dims, saved = std::vector<int32_t>(ids.begin(), ids.end())](
                     Context& inner, const Tensor& dy) -> Grads {
                   Tensor dtable = inner.empty({dims.table.n, dims.table.k});
                   EmbeddingDims back = dims;
                   back.y_row = dy.row_stride();
                   Backward::run(inner, "embedding", back, Table<int32_t>(inner, saved).data(),
                                 dy.f32(), dtable.f32());
                   return {dtable};
                 });
  }
  return y;
}

}  // namespace braid
