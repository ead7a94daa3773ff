#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/experts/kernels.h"
#include "braid/ops/experts/units.h"
#include "braid/ops/linear/on_thread.h"

namespace braid::cpu {
namespace {

PackedMatrix transposed(const PackedMatrix& b) { return {.n = b.k, .k = b.n, .dtype = b.dtype}; }

struct RowsPlan {
  int64_t unit_rows, units;
  size_t units_at, workers_at, worker_bytes, worker_dy, worker_u, worker_product, bytes;
};

RowsPlan plan_rows(const ExpertDims& dims, const ExpertGroup* groups, int threads) {
  RowsPlan plan{};
  // Few rows are cut smaller, down to a tile, so that all threads have some.
  const int64_t share = dims.rows / (4 * int64_t{threads});
  plan.unit_rows = std::clamp<int64_t>((share + 13) / 14 * 14, 14, kUnitRows);
  plan.units = cut_units(dims.groups, groups, plan.unit_rows, nullptr);
  const int64_t most = largest_unit(dims.groups, groups, plan.unit_rows);
  ScratchLayout layout, worker;
  plan.units_at = layout.take(static_cast<size_t>(plan.units) * sizeof(Unit));
  plan.workers_at = layout.bytes();
  plan.worker_dy = worker.floats(most * dims.width);
  plan.worker_u = worker.floats(most * dims.hidden);
  plan.worker_product = worker.take(std::max(
      linear_scratch_bytes(rows_times(transposed(dims.out()), most, dims.width, dims.hidden), 0),
      linear_scratch_bytes(rows_times(transposed(dims.in()), most, dims.in_rows(), dims.width),
                           0)));
  plan.worker_bytes = worker.bytes();
  plan.bytes = plan.workers_at + static_cast<size_t>(threads) * plan.worker_bytes;
  return plan;
}

void run_unit(const ExpertDims& dims, const RowsPlan& plan, const ExpertGroup& group,
              const Unit& unit, const ExpertVjpInputs& in, const ExpertVjpOutputs& out,
              void* worker) {
  const int64_t m = unit.rows(), hidden = dims.hidden, in_rows = dims.in_rows();
  auto* dy = piece<float>(worker, plan.worker_dy);
  auto* u = piece<float>(worker, plan.worker_u);
  auto* product = piece<std::byte>(worker, plan.worker_product);
  const float* pre = in.pre + unit.begin * in_rows;
  float *h = out.h + unit.begin * hidden, *dpre = out.dpre + unit.begin * in_rows;
  gather_rows(m, dims.width, dims.slots, in.order + unit.begin, dims.x_row, in.dy, dy);
  linear_on_thread(rows_times(transposed(dims.out()), m, dims.width, hidden), dy, group.out,
                   nullptr, u, product);
  activate_rows(dims, m, pre, h);
  for (int64_t i = 0; i < m; ++i) {
    const int64_t slot = in.order[unit.begin + i];
    const float weight = in.weights[slot / dims.slots * in.weights_row + slot % dims.slots];
    out.dweights[slot] = weigh_row(hidden, weight, u + i * hidden, h + i * hidden);
  }
  activate_rows_vjp(dims, m, pre, u, dpre);
  if (out.dx == nullptr) return;
  linear_on_thread(rows_times(transposed(dims.in()), m, in_rows, dims.width), dpre, group.in,
                   nullptr, out.dx + unit.begin * dims.width, product);
}

// dw = a^T b of one group: b packed, a's columns as rows.
struct GradientPlan {
  bool on_one_thread;  // each group, groups side by side
  int64_t most;        // rows of a group
  size_t worker_a, worker_b, worker_packed, worker_product, worker_bytes, bytes;
};

LinearDims gradient_product(const GradientDims& dims, int64_t rows, int64_t a_row) {
  return {.m = dims.n,
          .b = {.n = dims.k, .k = rows, .dtype = dims.dtype},
          .a_row = 1,
          .a_column = a_row,
          .c_row = dims.k,
          .start_row = 0};
}

GradientPlan plan_gradients(const GradientDims& dims, const ExpertGradient* groups, int threads) {
  GradientPlan plan{};
  for (int64_t g = 0; g < dims.groups; ++g) {
    plan.most = std::max(plan.most, groups[g].end - groups[g].begin);
  }
  plan.on_one_thread = dims.groups >= 4 * int64_t{threads};
  const int64_t a_row = dims.a_order != nullptr ? dims.n : dims.a_row;
  const LinearDims product = gradient_product(dims, plan.most, a_row);
  ScratchLayout worker;
  plan.worker_a = worker.floats(dims.a_order != nullptr ? plan.most * dims.n : 0);
  plan.worker_b = worker.floats(dims.b_order != nullptr ? plan.most * dims.k : 0);
  plan.worker_packed = worker.take(product.b.bytes());
  plan.worker_product = worker.take(linear_scratch_bytes(product, 0));
  plan.worker_bytes = worker.bytes();
  plan.bytes = (plan.on_one_thread ? static_cast<size_t>(threads) : 1) * plan.worker_bytes;
  return plan;
}

struct Matrix {
  const float* data;
  int64_t row;
};
Matrix gathered(const Matrix& all, int64_t width, int64_t slots, const int32_t* order,
                const ExpertGradient& group, float* room) {
  if (order == nullptr) return {all.data + group.begin * all.row, all.row};
  gather_rows(group.end - group.begin, width, slots, order + group.begin, all.row, all.data, room);
  return {room, width};
}

// `threads` is null inside a task.
void run_gradient(ThreadPool* threads, const GradientDims& dims, const GradientPlan& plan,
                  const ExpertGradient& group, const float* a, const float* b, void* worker) {
  const Matrix left = gathered({a, dims.a_row}, dims.n, dims.slots, dims.a_order, group,
                               piece<float>(worker, plan.worker_a));
  const Matrix right = gathered({b, dims.b_row}, dims.k, dims.slots, dims.b_order, group,
                                piece<float>(worker, plan.worker_b));
  const LinearDims product = gradient_product(dims, group.end - group.begin, left.row);
  const PackDims pack_dims{.to = product.b, .from = DType::kF32, .row = 1, .column = right.row};
  auto* packed = piece<std::byte>(worker, plan.worker_packed);
  auto* scratch = piece<std::byte>(worker, plan.worker_product);
  if (threads != nullptr) {
    pack(*threads, pack_dims, right.data, packed);
    linear(*threads, product, left.data, packed, nullptr, group.dw, scratch);
  } else {
    pack_panels(pack_dims, 0, product.b.panels(), right.data, packed);
    linear_on_thread(product, left.data, packed, nullptr, group.dw, scratch);
  }
}

}  // namespace

size_t expert_vjp_scratch_bytes(const ExpertDims& dims, const ExpertGroup* groups, int threads) {
  return plan_rows(dims, groups, threads).bytes;
}

void expert_rows_vjp(ThreadPool& threads, const ExpertDims& dims, const ExpertGroup* groups,
                     const ExpertVjpInputs& in, const ExpertVjpOutputs& out, void* scratch) {
  const RowsPlan plan = plan_rows(dims, groups, threads.size());
  auto* units = piece<Unit>(scratch, plan.units_at);
  cut_units(dims.groups, groups, plan.unit_rows, units);
  threads.parallel_for(plan.units, 1, [&](int64_t begin, int64_t end, int worker) {
    auto* own = piece<std::byte>(scratch,
                                 plan.workers_at + static_cast<size_t>(worker) * plan.worker_bytes);
    for (int64_t u = begin; u < end; ++u) {
      run_unit(dims, plan, groups[units[u].group], units[u], in, out, own);
    }
  });
}

size_t expert_gradient_scratch_bytes(const GradientDims& dims, const ExpertGradient* groups,
                                     int threads) {
  return plan_gradients(dims, groups, threads).bytes;
}

void expert_gradients(ThreadPool& threads, const GradientDims& dims, const ExpertGradient* groups,
                      const float* a, const float* b, void* scratch) {
  const GradientPlan plan = plan_gradients(dims, groups, threads.size());
  if (!plan.on_one_thread) {
    for (int64_t g = 0; g < dims.groups; ++g) {
      run_gradient(&threads, dims, plan, groups[g], a, b, scratch);
    }
    return;
  }
  threads.parallel_for(dims.groups, 1, [&](int64_t begin, int64_t end, int worker) {
    auto* own = piece<std::byte>(scratch, static_cast<size_t>(worker) * plan.worker_bytes);
    for (int64_t g = begin; g < end; ++g) run_gradient(nullptr, dims, plan, groups[g], a, b, own);
  });
}

}  // namespace braid::cpu
