#include "braid/ops/experts/experts.h"

#include <algorithm>
#include <utility>

#include "braid/core/kernel.h"
#include "braid/ops/experts/kernels.h"

namespace braid {
namespace {

// Shapes of every expert.
struct Shapes {
  int64_t count, width, hidden, in_rows;  // E, D, F, 2F or F
  DType dtype;
  ExpertActivation activation;

  ExpertActivationDims activation_dims(int64_t rows) const {
    return {.rows = rows, .hidden = hidden, .activation = activation};
  }
};

// Only those that are hit are looked at: looking at all would cost a decode step more than its sum.
void check_expert(const Expert& expert, int64_t index, const Shapes& s) {
  check(expert.in.defined() && expert.out.defined(), "experts: expert {} has an empty weight",
        index);
  check(expert.in.rows() == s.in_rows && expert.in.cols() == s.width,
        "experts: in of expert {} is {} by {}, want {} by {}", index, expert.in.rows(),
        expert.in.cols(), s.in_rows, s.width);
  check(expert.out.rows() == s.width && expert.out.cols() == s.hidden,
        "experts: out of expert {} is {} by {}, want {} by {}", index, expert.out.rows(),
        expert.out.cols(), s.width, s.hidden);
  check(expert.in.dtype() == s.dtype && expert.out.dtype() == s.dtype,
        "experts: expert {} holds {} and {}, want {}", index, to_string(expert.in.dtype()),
        to_string(expert.out.dtype()), to_string(s.dtype));
}

Shapes shapes_of(std::span<const Expert> experts, ExpertActivation activation) {
  check(!experts.empty() && experts[0].in.defined() && experts[0].out.defined(),
        "experts: there are no experts");
  const Weight& in = experts[0].in;
  const int64_t gates = activation == ExpertActivation::kSwiglu ? 2 : 1;
  check(in.rows() > 0 && in.rows() % gates == 0,
        "experts: in of expert 0 has {} rows, want gate and up", in.rows());
  const Shapes s{.count = std::ssize(experts),
                 .width = in.cols(),
                 .hidden = in.rows() / gates,
                 .in_rows = in.rows(),
                 .dtype = in.dtype(),
                 .activation = activation};
  check_expert(experts[0], 0, s);
  return s;
}

void check_device(const Context& ctx) {
  check(ctx.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "experts: there is no kernel for device {}", to_string(ctx.device()));
}

// Which rows meet which expert; rows are sorted by expert.
struct Groups {
  RouteCounts counts{};
  Tensor order, place;  // (rows), (N, k) i32, see sort_by_expert
  std::vector<Expert> hit;
  Tensor in, out;  // ExpertGroup (groups), as bytes

  static ExpertGroup* data(const Tensor& x) { return static_cast<ExpertGroup*>(x.raw()); }
  void resize(Context& ctx, int64_t groups) {
    const int64_t bytes = std::max<int64_t>(1, groups) * static_cast<int64_t>(sizeof(ExpertGroup));
    in = ctx.empty({bytes}, DType::kU8);
    out = ctx.empty({bytes}, DType::kU8);
  }
  void set(int64_t group, int64_t begin, int64_t end, const Expert& expert) {
    data(in)[group] = {.begin = begin, .end = end, .matrix = expert.in.packed()};
    data(out)[group] = {.begin = begin, .end = end, .matrix = expert.out.packed()};
  }
};

Groups sort(Context& ctx, const Tensor& ids, std::span<const Expert> experts, const Shapes& s) {
  const int64_t tokens = ids.rows(), slots = ids.dim(1), e = s.count;
  const RouteDims dims{.tokens = tokens, .slots = slots, .experts = e, .ids_row = ids.row_stride()};
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t j = 0; j < slots; ++j) {
      const int32_t id = ids.data<int32_t>()[n * dims.ids_row + j];
      check(id >= -1 && id < e, "experts: token {} asks for expert {}, there are {}", n, id, e);
    }
  }
  Groups groups;
  groups.order = ctx.empty({tokens * slots}, DType::kI32);
  groups.place = ctx.empty({tokens, slots}, DType::kI32);
  const Tensor table = ctx.empty({3 * e + 1}, DType::kI32);
  auto* counts = table.data<int32_t>();
  int32_t *hit = counts + e, *offsets = hit + e;
  groups.counts =
      cpu::sort_by_expert(dims, ids.data<int32_t>(), counts, groups.order.data<int32_t>(),
                          groups.place.data<int32_t>(), hit, offsets);
  groups.resize(ctx, groups.counts.groups);
  for (int64_t g = 0; g < groups.counts.groups; ++g) {
    const Expert& expert = experts[static_cast<size_t>(hit[g])];
    check_expert(expert, hit[g], s);
    groups.set(g, offsets[g], offsets[g + 1], expert);
    if (ctx.tape() != nullptr) groups.hit.push_back(expert);
  }
  return groups;
}

// c (rows, b.n) <- the groups' rows of a times their matrices.
Tensor product(Context& ctx, const Tensor& a, const PackedMatrix& b, int64_t groups,
               const Tensor& table) {
  Tensor c = ctx.empty({a.rows(), b.n});
  const GroupedDims dims{.b = b, .groups = groups, .a_row = a.row_stride(), .c_row = b.n};
  const auto bytes = static_cast<int64_t>(cpu::grouped_scratch_bytes(dims, Groups::data(table)));
  const Tensor scratch = ctx.empty({std::max<int64_t>(1, bytes)}, DType::kU8);
  cpu::grouped_linear(ctx.threads(), dims, Groups::data(table), a.f32(), c.f32(), scratch.raw());
  return c;
}

PackedMatrix in_matrix(const Shapes& s) { return {s.in_rows, s.width, s.dtype}; }
PackedMatrix out_matrix(const Shapes& s) { return {s.width, s.hidden, s.dtype}; }
PackedMatrix transposed(const PackedMatrix& b) { return {b.k, b.n, b.dtype}; }

Tensor activate(Context& ctx, const Shapes& s, const Tensor& pre) {
  Tensor h = ctx.empty({pre.rows(), s.hidden});
  cpu::expert_activation(ctx.threads(), s.activation_dims(pre.rows()), pre.f32(), h.f32());
  return h;
}

Tensor gather(Context& ctx, const Groups& groups, const Tensor& from) {
  Tensor to = ctx.empty({groups.counts.rows, from.dim(1)});
  cpu::gather_rows(ctx.threads(), groups.counts.rows, from.dim(1), groups.place.dim(1),
                   groups.order.data<int32_t>(), from.row_stride(), from.f32(), to.f32());
  return to;
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

// dw (n, k) = a^T b over the rows of one group.
Tensor weight_gradient(Context& ctx, const Tensor& a, const Tensor& b, DType dtype) {
  const PackDims pack{.to = {.n = b.dim(1), .k = b.rows(), .dtype = dtype},
                      .from = DType::kF32,
                      .row = 1,
                      .column = b.row_stride()};
  const Tensor packed = ctx.empty({static_cast<int64_t>(pack.to.bytes())}, DType::kU8);
  cpu::pack(ctx.threads(), pack, b.raw(), packed.raw());
  Tensor dw = ctx.empty({a.dim(1), b.dim(1)});
  const LinearDims dims{.m = a.dim(1),
                        .b = pack.to,
                        .a_row = 1,
                        .a_column = a.row_stride(),
                        .c_row = b.dim(1),
                        .start_row = 0};
  const auto bytes = static_cast<int64_t>(cpu::linear_scratch_bytes(dims));
  const Tensor scratch = ctx.empty({std::max<int64_t>(1, bytes)}, DType::kU8);
  cpu::linear(ctx.threads(), dims, a.f32(), packed.raw(), nullptr, dw.f32(), scratch.raw());
  return dw;
}

// What the vjp keeps: everything else is made again.
struct Saved {
  Shapes shapes;
  Groups groups;
  Tensor x, weights, pre;  // (N, D), (N, k), (rows, 2F or F)
  bool want_dx, want_dweights;
};

Grads backward(Context& ctx, const Saved& saved, const Tensor& dy) {
  const Shapes& s = saved.shapes;
  const Groups& groups = saved.groups;
  const int64_t count = groups.counts.groups, slots = groups.place.dim(1);
  // The transposed matrices; kept alive by `held` where they are made for the call.
  std::vector<Tensor> held;
  Groups turned;
  turned.resize(ctx, count);
  for (int64_t g = 0; g < count; ++g) {
    const Expert& expert = groups.hit[static_cast<size_t>(g)];
    ExpertGroup in = Groups::data(groups.in)[g], out = in;
    held.push_back(expert.out.packed_transpose(ctx));
    out.matrix = held.back().raw();
    Groups::data(turned.out)[g] = out;
    if (!saved.want_dx) continue;
    held.push_back(expert.in.packed_transpose(ctx));
    in.matrix = held.back().raw();
    Groups::data(turned.in)[g] = in;
  }
  const Tensor dy_rows = gather(ctx, groups, dy);  // (rows, D)
  const Tensor u = product(ctx, dy_rows, transposed(out_matrix(s)), count, turned.out);
  const Tensor h = activate(ctx, s, saved.pre);
  const Tensor dpre = ctx.empty(saved.pre.shape());
  const Tensor dweights = ctx.zeros(saved.weights.shape());
  const CombineDims dims{.tokens = dy.rows(),
                         .slots = slots,
                         .width = s.width,
                         .weights_row = saved.weights.row_stride()};
  cpu::expert_activation_vjp(ctx.threads(), s.activation_dims(groups.counts.rows), dims,
                             groups.order.data<int32_t>(), saved.weights.f32(), saved.pre.f32(),
                             u.f32(), h.f32(), dpre.f32(), dweights.f32());
  Grads grads(static_cast<size_t>(2 + 2 * count));
  if (saved.want_dweights) grads[1] = dweights;
  if (saved.want_dx) {
    const Tensor dx_rows = product(ctx, dpre, transposed(in_matrix(s)), count, turned.in);
    grads[0] = combine(ctx, groups.place, {}, dx_rows);
  }
  Tensor x_rows;
  for (int64_t g = 0; g < count; ++g) {
    const auto [begin, end, matrix] = Groups::data(groups.in)[g];
    const Expert& expert = groups.hit[static_cast<size_t>(g)];
    const auto at = static_cast<size_t>(2 + 2 * g);
    if (Tape::tracks(expert.in.plain())) {
      if (!x_rows.defined()) x_rows = gather(ctx, groups, saved.x);
      grads[at] =
          weight_gradient(ctx, dpre.slice_rows(begin, end), x_rows.slice_rows(begin, end), s.dtype);
    }
    if (Tape::tracks(expert.out.plain())) {
      grads[at + 1] =
          weight_gradient(ctx, dy_rows.slice_rows(begin, end), h.slice_rows(begin, end), s.dtype);
    }
  }
  return grads;
}

}  // namespace

Tensor experts(Context& ctx, const Tensor& x, const Tensor& ids, const Tensor& weights,
               std::span<const Expert> experts, ExpertActivation activation) {
  check_device(ctx);
  const Shapes s = shapes_of(experts, activation);
  check(x.rank() == 2 && x.dim(1) == s.width, "experts: x has shape {}, want (N, {})",
        to_string(x.shape()), s.width);
  check(ids.rank() == 2 && ids.rows() == x.rows(), "experts: ids has shape {}, want ({}, k)",
        to_string(ids.shape()), x.rows());
  check(weights.shape() == ids.shape(), "experts: weights has shape {}, want {}",
        to_string(weights.shape()), to_string(ids.shape()));
  Groups groups = sort(ctx, ids, experts, s);
  const int64_t count = groups.counts.groups;
  const Tensor pre = product(ctx, gather(ctx, groups, x), in_matrix(s), count, groups.in);
  const Tensor rows = product(ctx, activate(ctx, s, pre), out_matrix(s), count, groups.out);
  Tensor y = combine(ctx, groups.place, weights, rows);
  if (Tape* tape = ctx.tape()) {
    std::vector<Tensor> inputs = {x, weights};
    for (const Expert& expert : groups.hit) {
      inputs.push_back(expert.in.plain());
      inputs.push_back(expert.out.plain());
    }
    Saved saved{.shapes = s,
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
  }
  return y;
}

Tensor expert_rows(Context& ctx, const Tensor& x, std::span<const int64_t> offsets,
                   std::span<const Expert> experts, ExpertActivation activation) {
  check_device(ctx);
  const Shapes s = shapes_of(experts, activation);
  check(x.rank() == 2 && x.dim(1) == s.width, "expert_rows: x has shape {}, want (M, {})",
        to_string(x.shape()), s.width);
  check(std::ssize(offsets) == s.count + 1 && offsets.front() == 0 && offsets.back() == x.rows() &&
            std::is_sorted(offsets.begin(), offsets.end()),
        "expert_rows: want {} rising offsets from 0 to {}", s.count + 1, x.rows());
  Groups groups;
  groups.resize(ctx, std::min(s.count, x.rows()));
  int64_t count = 0;
  for (size_t e = 0; e < experts.size(); ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    check_expert(experts[e], static_cast<int64_t>(e), s);
    groups.set(count++, offsets[e], offsets[e + 1], experts[e]);
  }
  const Tensor pre = product(ctx, x, in_matrix(s), count, groups.in);
  return product(ctx, activate(ctx, s, pre), out_matrix(s), count, groups.out);
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
