#include "braid/core/tape.h"

#include <cassert>
#include <unordered_set>

#include "braid/core/context.h"

namespace braid {

void Tape::watch(Tensor& x) {
  if (x.grad_id() == 0) x.set_grad_id(next_id_++);
}

void Tape::record(std::vector<Tensor> inputs, std::vector<Tensor*> outputs, Vjp vjp) {
  bool tracked = false;
  for (const Tensor& input : inputs) tracked |= tracks(input);
  if (!tracked) return;
  Node node;
  for (const Tensor& input : inputs) node.inputs.push_back(input.grad_id());
  for (Tensor* output : outputs) {
    output->set_grad_id(next_id_++);
    node.outputs.push_back(output->grad_id());
  }
  node.vjp = std::move(vjp);
  nodes_.push_back(std::move(node));
}

void Tape::record(std::vector<Tensor> inputs, Tensor& output,
                  std::function<Grads(Context&, const Tensor& dy)> vjp) {
  record(std::move(inputs), std::vector<Tensor*>{&output},
         [vjp = std::move(vjp)](Context& ctx, const std::vector<Tensor>& dy) {
           return vjp(ctx, dy[0]);
         });
}

void Tape::accumulate(Context& ctx, uint64_t id, Tensor g) {
  if (id == 0 || !g.defined()) return;
  assert(g.dtype() == DType::kF32);
  if (sinks_ != nullptr && id < kFirstId) {
    const auto sink = sinks_->find(id);
    if (sink == sinks_->end()) return;  // a parameter that is not trained
    assert(sink->second.shape() == g.shape() && g.contiguous());
    ctx.api().accumulate(sink->second.f32(), g.f32(), g.count());
    return;
  }
  auto [slot, fresh] = grads_.try_emplace(id, g);
  if (fresh) return;
  Tensor& sum = slot->second;
  // The first gradient may be shared with somebody (an op may pass dy through to two inputs), so
  // adding in place needs sole ownership.
  if (sum.storage().use_count() > 1 || !sum.contiguous()) {
    Tensor copy = ctx.empty(sum.shape());
    const bool plain = sum.contiguous();
    for (int64_t i = 0; i < (plain ? 1 : sum.rows()); ++i) {
      const int64_t n = plain ? sum.count() : sum.row_count();
      ctx.api().copy(copy.f32() + i * n, sum.f32() + i * sum.row_stride(),
                     static_cast<size_t>(n) * sizeof(float));
    }
    sum = copy;
  }
  assert(sum.shape() == g.shape());
  const bool plain = g.contiguous();
  for (int64_t i = 0; i < (plain ? 1 : g.rows()); ++i) {
    const int64_t n = plain ? g.count() : g.row_count();
    ctx.api().accumulate(sum.f32() + i * n, g.f32() + i * g.row_stride(), n);
  }
}

void Tape::backward(Context& ctx, const std::vector<Tensor>& outputs,
                    const std::vector<Tensor>& dys) {
  assert(ctx.tape() == nullptr && outputs.size() == dys.size());
  for (size_t i = 0; i < outputs.size(); ++i) accumulate(ctx, outputs[i].grad_id(), dys[i]);
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    std::vector<Tensor> dy;
    bool reached = false;
    for (const uint64_t id : node.outputs) {
      const auto found = grads_.find(id);
      dy.push_back(found == grads_.end() ? Tensor{} : std::move(found->second));
      reached |= dy.back().defined();
      if (found != grads_.end()) grads_.erase(found);
    }
    if (!reached) continue;
    Grads grads = node.vjp(ctx, dy);
    assert(grads.size() == node.inputs.size());
    dy.clear();
    node.vjp = nullptr;
    for (size_t i = 0; i < grads.size(); ++i) {
      accumulate(ctx, node.inputs[i], std::move(grads[i]));
    }
  }
}

Tensor Tape::grad(const Tensor& x) const {
  const auto found = grads_.find(x.grad_id());
  return found == grads_.end() ? Tensor{} : found->second;
}

std::vector<Tensor> recompute(
    Context& ctx, std::vector<Tensor> inputs,
    std::function<std::vector<Tensor>(Context&, const std::vector<Tensor>&)> body) {
  Context plain = ctx.with_tape(nullptr);
  std::vector<Tensor> outputs = body(plain, inputs);
  Tape* tape = ctx.tape();
  if (tape == nullptr) return outputs;

  std::vector<Tensor*> slots;
  for (Tensor& output : outputs) slots.push_back(&output);
  // A parameter may be all that is tracked inside, so the record must be made in any case: the
  // first input is watched if none is.
  bool tracked = false;
  for (const Tensor& input : inputs) tracked |= Tape::tracks(input);
  if (!tracked) tape->watch(inputs.at(0));
  tape->record(inputs, slots,
               [inputs, body = std::move(body), tape, form = ctx.form()](
                   Context& outer, const std::vector<Tensor>& dy) {
                 Tape inner(tape->sinks(), tape->next_id());
                 Context again = outer.with_form(form).with_tape(&inner);
                 const std::vector<Tensor> results = body(again, inputs);
                 inner.backward(outer, results, dy);
                 // One tensor may be handed in twice; its gradient is the sum already.
                 std::unordered_set<uint64_t> seen;
                 Grads grads;
                 for (const Tensor& input : inputs) {
                   const bool first = seen.insert(input.grad_id()).second;
                   grads.push_back(first ? inner.grad(input) : Tensor{});
                 }
                 return grads;
               });
  return outputs;
}

}  // namespace braid
