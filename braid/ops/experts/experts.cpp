#include "braid/ops/experts/experts.h"

#include <algorithm>
#include <utility>

#include "braid/core/kernel.h"
#include "braid/ops/experts/kernels.h"

namespace braid {
namespace {

// What every expert is checked against: those that are hit are, since looking at all would cost a
// decode step more than its sum.
void check_expert(const Expert& expert, int64_t index, const ExpertDims& dims) {
  check(expert.in.defined() && expert.out.defined(), "experts: expert {} has an empty weight",
        index);
  check(expert.in.rows() == dims.in_rows() && expert.in.cols() == dims.width,
        "experts: in of expert {} is {} by {}, want {} by {}", index, expert.in.rows(),
        expert.in.cols(), dims.in_rows(), dims.width);
  check(expert.out.rows() == dims.width && expert.out.cols() == dims.hidden,
        "experts: out of expert {} is {} by {}, want {} by {}", index, expert.out.rows(),
        expert.out.cols(), dims.width, dims.hidden);
  check(expert.in.dtype() == dims.dtype && expert.out.dtype() == dims.dtype,
        "experts: expert {} holds {} and {}, want {}", index, to_string(expert.in.dtype()),
        to_string(expert.out.dtype()), to_string(dims.dtype));
}

// Without rows and groups, which sorting finds.
ExpertDims dims_of(const ExpertList& experts, ExpertActivation activation, const Tensor& x,
                   const char* op) {
  check(experts.size() > 0, "{}: there are no experts", op);
  const Expert first = experts[0];
  check(first.in.defined(), "{}: expert 0 has an empty weight", op);
  const Weight& in = first.in;
  const int64_t gates = activation == ExpertActivation::kSwiglu ? 2 : 1;
  check(in.rows() > 0 && in.rows() % gates == 0, "{}: in of expert 0 has {} rows, want gate and up",
        op, in.rows());
  check(x.rank() == 2 && x.dim(1) == in.cols(), "{}: x has shape {}, want (N, {})", op,
        to_string(x.shape()), in.cols());
  const ExpertDims dims{.rows = x.rows(),
                        .groups = 0,
                        .width = in.cols(),
                        .hidden = in.rows() / gates,
                        .dtype = in.dtype(),
                        .activation = activation,
                        .slots = 1,
                        .x_row = x.row_stride()};
  check_expert(first, 0, dims);
  return dims;
}

void check_device(const Context& ctx) {
  check(ctx.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "experts: there is no kernel for device {}", to_string(ctx.device()));
}

Tensor scratch(Context& ctx, size_t bytes) {
  return ctx.empty({std::max<int64_t>(1, static_cast<int64_t>(bytes))}, DType::kU8);
}

// A table of plain values in activation memory.
template <class T>
Tensor table(Context& ctx, int64_t count) {
  return scratch(ctx, static_cast<size_t>(count) * sizeof(T));
}
template <class T>
T* entries(const Tensor& x) {
  return static_cast<T*>(x.raw());
}

ExpertGroup group_of(int64_t begin, int64_t end, const Expert& expert) {
  return {.begin = begin, .end = end, .in = expert.in.packed(), .out = expert.out.packed()};
}

// Which rows meet which expert; rows are sorted by expert.
struct Groups {
  Tensor order, place;      // (rows), (N, k) i32, see sort_by_expert
  Tensor table;             // ExpertGroup (groups)
  std::vector<Expert> hit;  // kept for the vjp

  const ExpertGroup* data() const { return entries<ExpertGroup>(table); }
};

// Completes `dims` too.
Groups sort(Context& ctx, const Tensor& ids, const ExpertList& experts, ExpertDims& dims) {
  const int64_t tokens = ids.rows(), slots = ids.dim(1), e = experts.size();
  const RouteDims route{
      .tokens = tokens, .slots = slots, .experts = e, .ids_row = ids.row_stride()};
  const auto* id = ids.data<int32_t>();
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t j = 0; j < slots; ++j) {
      const int32_t wanted = id[n * route.ids_row + j];
      check(wanted >= -1 && wanted < e, "experts: token {} asks for expert {}, there are {}", n,
            wanted, e);
    }
  }
  Groups groups;
  groups.order = ctx.empty({tokens * slots}, DType::kI32);
  groups.place = ctx.empty({tokens, slots}, DType::kI32);
  const Tensor room = ctx.empty({3 * e + 1}, DType::kI32);
  auto* counts = room.data<int32_t>();
  int32_t *hit = counts + e, *offsets = hit + e;
  const RouteCounts found = cpu::sort_by_expert(route, id, counts, groups.order.data<int32_t>(),
                                                groups.place.data<int32_t>(), hit, offsets);
  dims.rows = found.rows;
  dims.groups = found.groups;
  dims.slots = slots;
  groups.table = table<ExpertGroup>(ctx, found.groups);
  for (int64_t g = 0; g < found.groups; ++g) {
    const Expert expert = experts[hit[g]];
    check_expert(expert, hit[g], dims);
    entries<ExpertGroup>(groups.table)[g] = group_of(offsets[g], offsets[g + 1], expert);
    if (ctx.tape() != nullptr) groups.hit.push_back(expert);
  }
  return groups;
}

// (rows, D); order null where rows lie sorted; pre, which is kept for a vjp, may be empty.
Tensor run_rows(Context& ctx, const ExpertDims& dims, const ExpertGroup* groups,
                const int32_t* order, const Tensor& x, const Tensor& pre) {
  Tensor y = ctx.empty({dims.rows, dims.width});
  const Tensor room =
      scratch(ctx, cpu::expert_scratch_bytes(dims, groups, ctx.threads().size(), pre.defined()));
  cpu::expert_rows(ctx.threads(), dims, groups, order, x.f32(), pre.defined() ? pre.f32() : nullptr,
                   y.f32(), room.raw());
  return y;
}

// weights may be empty: all ones.
Tensor combine(Context& ctx, const Tensor& place, const Tensor& weights, const Tensor& rows) {
  Tensor y = ctx.empty({place.rows(), rows.dim(1)});
  const CombineDims dims{.tokens = place.rows(),
                         .slots = place.dim(1),
                         .width = rows.dim(1),
                         .weights_row = weights.defined() ? weights.row_stride() : 0};
  cpu::combine_rows(ctx.threads(), dims, place.data<int32_t>(),
                    weights.defined() ? weights.f32() : nullptr, rows.f32(), y.f32());
  return y;
}

// What the vjp keeps: everything else is made again.
struct Saved {
  ExpertDims dims;
  Groups groups;
  Tensor x, weights, pre;  // (N, D), (N, k), (rows, 2F or F)
  bool want_dx, want_dweights;
};

// The groups with the packed transposes; `held` keeps alive those that are made for the call.
Tensor transposed_groups(Context& ctx, const Saved& saved, std::vector<Tensor>& held) {
  Tensor turned = table<ExpertGroup>(ctx, saved.dims.groups);
  for (int64_t g = 0; g < saved.dims.groups; ++g) {
    const Expert& expert = saved.groups.hit[static_cast<size_t>(g)];
    ExpertGroup group = saved.groups.data()[g];
    held.push_back(expert.out.packed_transpose(ctx));
    group.out = held.back().raw();
    if (saved.want_dx) {
      held.push_back(expert.in.packed_transpose(ctx));
      group.in = held.back().raw();
    }
    entries<ExpertGroup>(turned)[g] = group;
  }
  return turned;
}

// Gradients of one of the two matrices of every expert that trains it, as a^T b, into grads[first],
// grads[first + 2], ...
void matrix_gradients(Context& ctx, const Saved& saved, Weight Expert::*matrix, GradientDims dims,
                      const float* a, const float* b, Grads& grads, size_t first) {
  const Tensor groups = table<ExpertGradient>(ctx, saved.dims.groups);
  dims.groups = 0;
  dims.dtype = saved.dims.dtype;
  dims.slots = saved.dims.slots;
  for (int64_t g = 0; g < saved.dims.groups; ++g) {
    const auto at = static_cast<size_t>(g);
    if (!Tape::tracks((saved.groups.hit[at].*matrix).plain())) continue;
    Tensor dw = ctx.empty({dims.n, dims.k});
    const ExpertGroup& group = saved.groups.data()[g];
    entries<ExpertGradient>(groups)[dims.groups++] = {group.begin, group.end, dw.f32()};
    grads[first + 2 * at] = std::move(dw);
  }
  const auto* found = entries<ExpertGradient>(groups);
  const Tensor room =
      scratch(ctx, cpu::expert_gradient_scratch_bytes(dims, found, ctx.threads().size()));
  cpu::expert_gradients(ctx.threads(), dims, found, a, b, room.raw());
}

Grads backward(Context& ctx, const Saved& saved, const Tensor& dy) {
  ExpertDims dims = saved.dims;
  dims.x_row = dy.row_stride();
  const auto* order = saved.groups.order.data<int32_t>();
  std::vector<Tensor> held;
  const Tensor turned = transposed_groups(ctx, saved, held);
  const auto* groups = entries<ExpertGroup>(turned);
  const Tensor h = ctx.empty({dims.rows, dims.hidden}), dpre = ctx.empty(saved.pre.shape());
  const Tensor dweights = ctx.zeros(saved.weights.shape());
  const Tensor dx = saved.want_dx ? ctx.empty({dims.rows, dims.width}) : Tensor{};
  const Tensor room =
      scratch(ctx, cpu::expert_vjp_scratch_bytes(dims, groups, ctx.threads().size()));
  cpu::expert_rows_vjp(
      ctx.threads(), dims, groups,
      {order, saved.weights.f32(), saved.weights.row_stride(), dy.f32(), saved.pre.f32()},
      {dweights.f32(), h.f32(), dpre.f32(), dx.defined() ? dx.f32() : nullptr}, room.raw());
  Grads grads(static_cast<size_t>(2 + 2 * dims.groups));
  if (saved.want_dx) grads[0] = combine(ctx, saved.groups.place, {}, dx);
  if (saved.want_dweights) grads[1] = dweights;
  matrix_gradients(ctx, saved, &Expert::in,
                   {.n = dims.in_rows(),
                    .k = dims.width,
                    .b_order = order,
                    .a_row = dims.in_rows(),
                    .b_row = saved.x.row_stride()},
                   dpre.f32(), saved.x.f32(), grads, 2);
  matrix_gradients(ctx, saved, &Expert::out,
                   {.n = dims.width,
                    .k = dims.hidden,
                    .a_order = order,
                    .a_row = dy.row_stride(),
                    .b_row = dims.hidden},
                   dy.f32(), h.f32(), grads, 3);
  return grads;
}

}  // namespace

Tensor experts(Context& ctx, const Tensor& x, const Tensor& ids, const Tensor& weights,
               const ExpertList& experts, ExpertActivation activation) {
  check_device(ctx);
  ExpertDims dims = dims_of(experts, activation, x, "experts");
  check(ids.rank() == 2 && ids.rows() == x.rows(), "experts: ids has shape {}, want ({}, k)",
        to_string(ids.shape()), x.rows());
  check(weights.shape() == ids.shape(), "experts: weights has shape {}, want {}",
        to_string(weights.shape()), to_string(ids.shape()));
  Groups groups = sort(ctx, ids, experts, dims);
  Tape* tape = ctx.tape();
  const Tensor pre = tape == nullptr ? Tensor{} : ctx.empty({dims.rows, dims.in_rows()});
  const Tensor rows = run_rows(ctx, dims, groups.data(), groups.order.data<int32_t>(), x, pre);
  Tensor y = combine(ctx, groups.place, weights, rows);
  if (tape == nullptr) return y;
  std::vector<Tensor> inputs = {x, weights};
  for (const Expert& expert : groups.hit) {
    inputs.push_back(expert.in.plain());
    inputs.push_back(expert.out.plain());
  }
  Saved saved{.dims = dims,
              .groups = std::move(groups),
              .x = x,
              .weights = weights,
              .pre = pre,
              .want_dx = Tape::tracks(x),
              .want_dweights = Tape::tracks(weights)};
  tape->record(std::move(inputs), y,
               [saved = std::move(saved)](Context& inner, const Tensor& dy) -> Grads {
                 return backward(inner, saved, dy);
               });
  return y;
}

Tensor expert_rows(Context& ctx, const Tensor& x, std::span<const int64_t> offsets,
                   const ExpertList& experts, ExpertActivation activation) {
  check_device(ctx);
  ExpertDims dims = dims_of(experts, activation, x, "expert_rows");
  const int64_t count = experts.size();
  check(std::ssize(offsets) == count + 1 && offsets.front() == 0 && offsets.back() == x.rows() &&
            std::is_sorted(offsets.begin(), offsets.end()),
        "expert_rows: want {} rising offsets from 0 to {}", count + 1, x.rows());
  const Tensor groups = table<ExpertGroup>(ctx, std::min(count, x.rows()));
  for (int64_t e = 0; e < count; ++e) {
    const int64_t begin = offsets[static_cast<size_t>(e)],
                  end = offsets[static_cast<size_t>(e) + 1];
    if (begin == end) continue;
    const Expert expert = experts[e];
    check_expert(expert, e, dims);
    entries<ExpertGroup>(groups)[dims.groups++] = group_of(begin, end, expert);
  }
  return run_rows(ctx, dims, entries<ExpertGroup>(groups), nullptr, x, {});
}

Tensor combine_expert_rows(Context& ctx, const Tensor& rows, const Tensor& place,
                           const Tensor& weights) {
  check_device(ctx);
  check(rows.rank() == 2 && rows.contiguous(),
        "combine_expert_rows: rows has shape {}, want (M, D)", to_string(rows.shape()));
  check(place.rank() == 2 && place.contiguous() && place.shape() == weights.shape(),
        "combine_expert_rows: place has shape {}, weights {}, want (N, k) both",
        to_string(place.shape()), to_string(weights.shape()));
  for (int64_t i = 0; i < place.count(); ++i) {
    const int32_t m = place.data<int32_t>()[i];
    check(m >= -1 && m < rows.rows(), "combine_expert_rows: place {}, there are {} rows", m,
          rows.rows());
  }
  return combine(ctx, place, weights, rows);
}

}  // namespace braid
