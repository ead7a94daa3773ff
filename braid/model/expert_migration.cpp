// Planning again, and moving experts between ranks while steps go on.
#include <algorithm>
#include <cstring>

#include "braid/core/error.h"
#include "braid/model/expert_parallel.h"

namespace braid {
namespace {

int64_t expert_bytes(const std::array<Parameter*, 2>& weights, size_t element) {
  return (weights[0]->shape.count() + weights[1]->shape.count()) * static_cast<int64_t>(element);
}

// The matrix as it was before packing, which keeps its bits.
void send_weight(Context& ctx, Transport& transport, int64_t to, const Weight& weight) {
  const Tensor plain = weight.to_plain(ctx, weight.dtype());
  transport.send(static_cast<int>(to), {static_cast<const std::byte*>(plain.raw()), plain.bytes()});
}

Weight receive_weight(Context& ctx, Transport& transport, int64_t from,
                      const Parameter& parameter) {
  const std::vector<std::byte> bytes = transport.receive(static_cast<int>(from));
  const auto count = static_cast<size_t>(parameter.shape.count());
  check(bytes.size() == count * sizeof(float) || bytes.size() == count * sizeof(BF16),
        ErrorKind::kFormat, "experts: {} arrives in {} bytes, want {} values", parameter.name,
        bytes.size(), count);
  const DType dtype = bytes.size() == count * sizeof(float) ? DType::kF32 : DType::kBF16;
  const Tensor plain = ctx.empty(parameter.shape, dtype);
  std::memcpy(plain.raw(), bytes.data(), bytes.size());
  return Weight::make(ctx, plain, {.packed_dtype = dtype});
}

}  // namespace

void ExpertParallel::end_step(Context& ctx) {
  ++steps_;
  finish_moves(ctx);
  if (waiting_.empty() && options_.replan_every > 0 && steps_ % options_.replan_every == 0) plan();
  start_moves(ctx);
}

// Every rank sees the same counts and so makes the same plan.
void ExpertParallel::plan() {
  std::vector<int64_t> counts;
  for (Layer& layer : layers_) {
    counts.insert(counts.end(), layer.chosen.begin(), layer.chosen.end());
    std::ranges::fill(layer.chosen, 0);
  }
  transport_->all_reduce_sum(std::span(counts));
  auto count = counts.begin();
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    for (double& average : layer.average) {
      average = options_.past * average + static_cast<double>(*count++);
    }
    if (plans_ == 0) {
      layer.report.before = imbalance(rows_of_ranks(layer));
      layer.rows = 0;
    }
    Placement next = plan_placement(layer.average, placement_options(layer));
    const double now = imbalance(worker_loads(layer.placement, layer.average));
    const double then = imbalance(worker_loads(next, layer.average));
    if (then > now * (1 - options_.least_gain)) continue;
    for (const ExpertMove& move : expert_moves(layer.placement, next)) {
      waiting_.push_back({.layer = l, .move = move});
      ++layer.moves_left;
    }
    layer.next = std::move(next);
    if (layer.moves_left == 0) change_over(layer);
  }
  ++plans_;
}

// The next experts set out. Their weights arrive at the latest when the next step has ended.
void ExpertParallel::start_moves(Context& ctx) {
  size_t bytes = 0;
  while (!waiting_.empty() && (moving_.empty() || bytes < options_.move_bytes)) {
    const Move& next = moving_.emplace_back(waiting_.front());
    waiting_.pop_front();
    const auto& weights = layers_[next.layer].weights[static_cast<size_t>(next.move.expert)];
    bytes += static_cast<size_t>(expert_bytes(weights, size_of(dtype())));
    if (next.move.from != transport_->rank()) continue;
    for (const Parameter* p : weights) send_weight(ctx, *transport_, next.move.to, p->weight);
  }
}

void ExpertParallel::finish_moves(Context& ctx) {
  for (const Move& done : moving_) {
    Layer& layer = layers_[done.layer];
    if (done.move.to == transport_->rank()) {
      for (Parameter* p : layer.weights[static_cast<size_t>(done.move.expert)]) {
        p->weight = receive_weight(ctx, *transport_, done.move.from, *p);
      }
    }
    ++moved_;
    if (--layer.moves_left == 0) change_over(layer);
  }
  moving_.clear();
}

void ExpertParallel::change_over(Layer& layer) {
  layer.placement = std::move(*layer.next);
  layer.next.reset();
  for (size_t e = 0; e < layer.weights.size(); ++e) {
    if (layer.placement.holds(transport_->rank(), static_cast<int64_t>(e))) continue;
    for (Parameter* p : layer.weights[e]) p->weight = {};
  }
  std::ranges::fill(layer.turn, 0);
  layer.rows = 0;
  ++layer.report.switches;
}

// Of the experts; every rank holds some of every layer.
DType ExpertParallel::dtype() const {
  for (const auto& weights : layers_[0].weights) {
    if (weights[0]->weight.defined()) return weights[0]->weight.dtype();
  }
  return DType::kF32;
}

std::vector<double> ExpertParallel::rows_of_ranks(const Layer& layer) {
  std::vector<int64_t> rows(static_cast<size_t>(transport_->size()), 0);
  rows[static_cast<size_t>(transport_->rank())] = layer.rows;
  transport_->all_reduce_sum(std::span(rows));
  return {rows.begin(), rows.end()};
}

ExpertReport ExpertParallel::report() {
  ExpertReport report{.moved_experts = moved_, .steps = steps_};
  int64_t mine = 0;
  const size_t element = size_of(dtype());
  for (const Layer& layer : layers_) {
    ExpertReport::Layer& of = report.layers.emplace_back(layer.report);
    of.after = imbalance(rows_of_ranks(layer));
    if (plans_ == 0) of.before = of.after;
    for (const auto& weights : layer.weights) {
      report.all_bytes += expert_bytes(weights, element);
      for (const Parameter* p : weights) {
        if (p->weight.defined()) mine += static_cast<int64_t>(p->weight.packed_bytes());
      }
    }
  }
  report.resident_bytes.assign(static_cast<size_t>(transport_->size()), 0);
  report.resident_bytes[static_cast<size_t>(transport_->rank())] = mine;
  transport_->all_reduce_sum(std::span(report.resident_bytes));
  return report;
}

}  // namespace braid
