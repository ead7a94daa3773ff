#include "braid/ops/rope/rope.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>

#include "braid/core/kernel.h"
#include "braid/ops/rope/kernels.h"
#include "braid/ops/view/view.h"

namespace braid {

using AnglesKernel = Kernel<&cpu::rope_angles>;
using RopeKernel = Kernel<&cpu::rope>;

namespace {

struct PositionRange {
  int64_t start, length;
};

// Where every token of the batch lies, if that is at most half as many positions as there are
// tokens: then computing each once and copying it is cheaper.
std::optional<PositionRange> common_positions(const SequenceBatch& batch) {
  int64_t start = std::numeric_limits<int64_t>::max(), end = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    start = std::min(start, batch.starts[static_cast<size_t>(s)]);
    end = std::max(end, batch.starts[static_cast<size_t>(s)] + batch.length(s));
  }
  if (end <= start || end - start > batch.tokens() / 2) return std::nullopt;
  return PositionRange{start, end - start};
}

// One table for all sequences, or one for each.
RopeAngles make_angles(Context& ctx, std::span<const RopeTable> tables,
                       const SequenceBatch& batch) {
  const int64_t n = batch.tokens();
  const auto pairs = static_cast<int64_t>(tables[0].inv_freq.size());
  RopeAngles angles{.interleaved = tables[0].interleaved};
  if (pairs == 0) return angles;
  if (const auto range = common_positions(batch); range && tables.size() == 1) {
    const RopeAngles once =
        make_angles(ctx, tables, SequenceBatch::single(range->length, range->start));
    std::vector<int64_t> rows;
    rows.reserve(static_cast<size_t>(n));
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      const int64_t first = batch.starts[static_cast<size_t>(s)] - range->start;
      for (int64_t i = 0; i < batch.length(s); ++i) rows.push_back(first + i);
    }
    angles.cos = gather_rows(ctx, once.cos, rows);
    angles.sin = gather_rows(ctx, once.sin, rows);
    return angles;
  }
  std::vector<int64_t> position, table_of;
  position.reserve(static_cast<size_t>(n));
  table_of.reserve(static_cast<size_t>(n));
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t start = batch.starts[static_cast<size_t>(s)];
    for (int64_t i = 0; i < batch.length(s); ++i) position.push_back(start + i);
    table_of.resize(position.size(), tables.size() == 1 ? 0 : s);
  }
  std::vector<double> inv_freq, factor;
  for (const RopeTable& table : tables) {
    inv_freq.insert(inv_freq.end(), table.inv_freq.begin(), table.inv_freq.end());
    factor.push_back(table.attention_factor);
  }
  const auto count = static_cast<int64_t>(tables.size());
  const Tensor p = ctx.to_device(host_tensor(std::move(position), {n}));
  const Tensor t = ctx.to_device(host_tensor(std::move(table_of), {n}));
  const Tensor f = ctx.to_device(host_tensor(std::move(inv_freq), {count, pairs}));
  const Tensor a = ctx.to_device(host_tensor(std::move(factor), {count}));
  angles.cos = ctx.empty({n, pairs});
  angles.sin = ctx.empty({n, pairs});
  AnglesKernel::run(ctx, "rope_angles", RopeAnglesDims{.rows = n, .pairs = pairs},
                    p.data<int64_t>(), t.data<int64_t>(), f.data<double>(), a.data<double>(),
                    angles.cos.f32(), angles.sin.f32());
  return angles;
}

Tensor turn(Context& ctx, const Tensor& x, int64_t heads, const RopeAngles& angles, int64_t first,
            bool inverse) {
  const RopeDims dims{.rows = x.rows(),
                      .heads = heads,
                      .head_dim = x.row_count() / heads,
                      .pairs = angles.cos.dim(1),
                      .first = first,
                      .x_stride = x.row_stride(),
                      .interleaved = angles.interleaved,
                      .inverse = inverse};
  Tensor y = ctx.empty(x.shape());
  RopeKernel::run(ctx, "rope", dims, x.f32(), angles.cos.f32(), angles.sin.f32(), y.f32());
  return y;
}

}  // namespace

RopeAngles rope_angles(Context& ctx, const RopeTable& table, const SequenceBatch& batch) {
  return make_angles(ctx, {&table, 1}, batch);
}

RopeAngles rope_angles(Context& ctx, const RopeOptions& options, const SequenceBatch& batch,
                       int64_t context) {
  std::vector<RopeTable> tables;
  if (!depends_on_length(options.kind) || context > 0 || batch.sequences() == 0) {
    tables.push_back(make_rope_table(options, context));
  } else {
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      tables.push_back(
          make_rope_table(options, batch.starts[static_cast<size_t>(s)] + batch.length(s)));
    }
  }
  return make_angles(ctx, tables, batch);
}

Tensor rope(Context& ctx, const Tensor& x, int64_t heads, const RopeAngles& angles, int64_t first) {
  check(x.rank() == 2 || x.rank() == 3, "rope: x has shape {}, want (N, H * hd) or (N, H, hd)",
        to_string(x.shape()));
  check(heads > 0 && x.row_count() % heads == 0 && (x.rank() == 2 || x.dim(1) == heads),
        "rope: x has shape {}, want {} heads to a row", to_string(x.shape()), heads);
  if (!angles.cos.defined()) return x;
  check(angles.cos.rows() == x.rows(), "rope: there are angles of {} tokens, want {}",
        angles.cos.rows(), x.rows());
  check(first >= 0 && first + 2 * angles.cos.dim(1) <= x.row_count() / heads,
        "rope: rotary_dim is {} after {} dimensions, want at most the head's {}",
        2 * angles.cos.dim(1), first, x.row_count() / heads);
  Tensor y = turn(ctx, x, heads, angles, first, false);
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [heads, angles, first](Context& inner, const Tensor& dy) -> Grads {
      return {turn(inner, dy, heads, angles, first, true)};
    });
  }
  return y;
}

Tensor rope(Context& ctx, const Tensor& x, const SequenceBatch& batch, int64_t heads,
            const RopeTable& table) {
  return rope(ctx, x, heads, rope_angles(ctx, table, batch));
}

}  // namespace braid
