#include <cmath>
#include <functional>

#include "tests/property/laws.h"
#include "tests/support/numeric.h"

namespace braid::test {
namespace {

constexpr int64_t kWidth = 64;

Tensor input(int64_t rows, uint64_t seed) { return randn({rows, kWidth}, seed); }

using Forward = std::function<std::vector<Tensor>(Context&, const std::vector<Tensor>& inputs)>;

// The gradients of <outputs, douts> by inputs and parameters.
struct Gradients {
  std::vector<Tensor> inputs;
  Tape::Sinks sinks;
};

Gradients gradients(Context& ctx, const Subject& subject, std::vector<Tensor> inputs,
                    const std::vector<Tensor>& douts, const Forward& forward) {
  Gradients out;
  for (Parameter* p : subject.trained()) {
    out.sinks[p->value.grad_id()] = ctx.zeros(p->shape);
  }
  Tape tape(&out.sinks);
  for (Tensor& input : inputs) tape.watch(input);
  Context taped = ctx.with_tape(&tape);
  const std::vector<Tensor> outputs = forward(taped, inputs);
  tape.backward(ctx, outputs, douts);
  for (const Tensor& input : inputs) out.inputs.push_back(tape.grad(input));
  return out;
}

// What `f` gives with one float32 tensor moved in place.
template <class F>
auto with_moved(Tensor& value, const std::vector<double>& direction, double step, F&& f) {
  float* data = value.f32();
  const std::vector<float> before(data, data + value.count());
  for (size_t i = 0; i < before.size(); ++i) {
    data[i] = static_cast<float>(before[i] + step * direction[i]);
  }
  auto result = f();
  std::copy(before.begin(), before.end(), data);
  return result;
}

double difference(Tensor& value, const std::vector<double>& direction, double h,
                  const std::function<double()>& loss) {
  return (with_moved(value, direction, h, loss) - with_moved(value, direction, -h, loss)) / (2 * h);
}

// A random direction, and the scale of its elements: a step along it is small beside the values it
// moves, unless they are zero.
struct Direction {
  double scale;
  std::vector<double> of;
};
Direction direction_of(const Tensor& value) {
  const auto at = values(value);
  const double rms = std::sqrt(dot(at, at) / static_cast<double>(at.size()));
  Direction d{.scale = rms == 0 ? 1 : std::min(1.0, 8 * rms),
              .of = values(randn(value.shape(), 25))};
  for (double& v : d.of) v *= d.scale;
  return d;
}

constexpr double kStep = 0x1p-8;

// Zeroes the rows of `douts` (of the first output) in which a step that the differences take along
// any direction makes a jump: there a choice changed, and the difference is not the derivative's.
// What bends alone moves the middle of two ends by the square of the step.
std::string leave_out_jumps(Context& ctx, const Subject& subject, std::vector<Tensor>& inputs,
                            std::vector<Tensor>& douts, const Forward& forward) {
  constexpr double kJump = 0x1p-6;
  const std::vector<double> rest = values(forward(ctx, inputs)[0]);
  const auto rows = static_cast<size_t>(douts[0].rows()), width = rest.size() / rows;
  std::vector<bool> jumps(rows);
  const auto look = [&](Tensor& value, const std::function<void()>& follow) {
    const Direction direction = direction_of(value);
    const auto at = [&](double step) {
      return with_moved(value, direction.of, step, [&] {
        follow();
        return values(forward(ctx, inputs)[0]);
      });
    };
    for (const double h : {kStep, kStep / 2}) {
      const std::vector<double> above = at(h), below = at(-h);
      for (size_t row = 0; row < rows; ++row) {
        double bend = 0, size = 0;
        for (size_t i = row * width; i < (row + 1) * width; ++i) {
          bend += std::pow(above[i] + below[i] - 2 * rest[i], 2);
          size += rest[i] * rest[i];
        }
        jumps[row] = jumps[row] || bend > kJump * kJump * size;
      }
    }
  };
  for (Tensor& input : inputs) look(input, [] {});
  for (Parameter* p : subject.trained()) {
    const auto follow = [&] {
      if (p->matrix) p->weight.repack(ctx);
    };
    look(p->value, follow);
    follow();
  }
  for (size_t row = 0; row < rows; ++row) {
    if (jumps[row]) std::fill_n(douts[0].f32() + row * width, width, 0.0f);
  }
  const auto left_out = std::ranges::count(jumps, true);
  if (2 * left_out <= std::ssize(jumps)) return "";
  return fmt::format("{} of {} rows jump, want half of them smooth", left_out, rows);
}

// Differences of two steps, h and h / 2, extrapolated to none: their truncation, of order h^2,
// falls out, and what is left is far below `bound` of the gradient's scale, taken here as the sum
// of the terms' magnitudes along the direction. `noise` is what the rounding of the loss does to a
// difference of step h; one of h / 2 has twice as much.
std::string check_along_a_direction(const std::string& name, Tensor& value, const Tensor& gradient,
                                    double noise, const std::function<double()>& loss) {
  constexpr double bound = 2e-3;
  if (!gradient.defined()) return name + ": no gradient arrived";
  const auto [scale, direction] = direction_of(value);
  const auto gv = values(gradient);
  double want = 0, norm = 0;
  for (size_t i = 0; i < gv.size(); ++i) {
    want += gv[i] * direction[i];
    norm += gv[i] * gv[i];
  }
  const double whole = difference(value, direction, kStep, loss);
  const double half = difference(value, direction, kStep / 2, loss);
  const double got = (4 * half - whole) / 3;
  const double error =
      std::max(std::abs(got - want) - 3 * noise, 0.0) / std::max(scale * std::sqrt(norm), 1e-3);
  if (error <= bound * std::sqrt(static_cast<double>(gv.size())) / 8 + bound) return "";
  return fmt::format("{}: gradient along a direction is {}, differences give {}", name, want, got);
}

// Every input, by `names`, and every parameter against differences of <outputs, douts>.
std::string match_differences(Context& ctx, const Subject& subject, std::vector<Tensor> inputs,
                              const std::vector<std::string>& names, std::vector<Tensor> douts,
                              const Forward& forward) {
  if (subject.chooses) {
    const std::string broken = leave_out_jumps(ctx, subject, inputs, douts, forward);
    if (!broken.empty()) return broken;
  }
  Gradients g = gradients(ctx, subject, inputs, douts, forward);
  std::vector<std::vector<double>> weights;
  for (const Tensor& dout : douts) weights.push_back(values(dout));
  // A float32 forward of n terms carries a relative error of about 2^-24 sqrt(n) in each output,
  // independent of the others', which the difference divides by its step.
  double squares = 0;
  const std::vector<Tensor> at_rest = forward(ctx, inputs);
  for (size_t i = 0; i < at_rest.size(); ++i) {
    const std::vector<double> v = values(at_rest[i]);
    for (size_t k = 0; k < v.size(); ++k) squares += std::pow(v[k] * weights[i][k], 2);
  }
  const double noise = 0x1p-24 * std::sqrt(static_cast<double>(inputs[0].rows()) * squares) / kStep;
  const auto loss = [&] {
    const std::vector<Tensor> outputs = forward(ctx, inputs);
    double sum = 0;
    for (size_t i = 0; i < outputs.size(); ++i) sum += dot(values(outputs[i]), weights[i]);
    return sum;
  };
  std::string broken;
  for (size_t i = 0; i < inputs.size() && broken.empty(); ++i) {
    broken = check_along_a_direction(names[i], inputs[i], g.inputs[i], noise, loss);
  }
  for (Parameter* p : subject.trained()) {
    if (!broken.empty()) break;
    broken = check_along_a_direction(p->name, p->value, g.sinks[p->value.grad_id()], noise, [&] {
      if (p->matrix) p->weight.repack(ctx);  // the packed copy follows
      return loss();
    });
    if (p->matrix) p->weight.repack(ctx);
  }
  return broken;
}

SequenceBatch batch_of(const std::vector<int64_t>& lengths, int64_t start) {
  SequenceBatch batch;
  for (const int64_t n : lengths) batch.add(n, start);
  return batch;
}

// (y, last states...) of one piece that starts from inputs (x, initial states...).
std::vector<Tensor> run_piece(Context& ctx, const Subject& subject, const SequenceBatch& batch,
                              const std::vector<Tensor>& inputs) {
  SlotTensors state{.initial = {inputs.begin() + 1, inputs.end()}, .last = {}};
  std::vector<Tensor> outputs{subject.run_tensors(ctx, inputs[0], batch, state)};
  outputs.insert(outputs.end(), state.last.begin(), state.last.end());
  return outputs;
}

std::string compare(const Tensor& got, const Tensor& want, double bound, const std::string& what) {
  if (!got.defined() || !want.defined()) return what + " is missing";
  const double error = max_error(values(got), values(want));
  if (error <= bound) return "";
  return fmt::format("{}: error {:.2e}, want {:.2e}", what, error, bound);
}

}  // namespace

std::string gradients_match_differences(Context& ctx, const Subject& subject) {
  const SequenceBatch batch = batch_of({9, 1, 70}, 0);
  return match_differences(ctx, subject, {input(batch.tokens(), 23)}, {"x"},
                           {input(batch.tokens(), 24)},
                           [&](Context& c, const std::vector<Tensor>& inputs) {
                             return std::vector<Tensor>{subject.run(c, inputs[0], batch)};
                           });
}

std::string state_gradients_match_differences(Context& ctx, const Subject& subject) {
  const StateSpec slots = subject.layer->state_spec();
  // States that can be reached, since not every mixer is defined on any numbers.
  constexpr int64_t kStart = 5;
  const SequenceBatch before = batch_of({kStart, kStart, kStart, kStart}, 0);
  std::vector<Tensor> inputs = run_piece(ctx, subject, before, {input(before.tokens(), 28)});
  if (inputs.size() != slots.size() + 1) {
    return fmt::format("{} states were left, want {}", inputs.size() - 1, slots.size());
  }
  const SequenceBatch batch = batch_of({9, 0, 1, 70}, kStart);
  inputs[0] = input(batch.tokens(), 29);
  std::vector<std::string> names{"x"};
  std::vector<Tensor> douts{input(batch.tokens(), 30)};
  for (size_t j = 0; j < slots.size(); ++j) {
    std::vector<int64_t> extents{batch.sequences()};
    for (int i = 0; i < slots[j].shape.rank(); ++i) extents.push_back(slots[j].shape[i]);
    const Tensor& state = inputs[j + 1];
    if (!state.defined() || state.shape() != Shape(extents)) {
      return fmt::format("state {} is {}, want {}", slots[j].name, to_string(state.shape()),
                         to_string(Shape(extents)));
    }
    names.push_back("initial " + slots[j].name);
    inputs[j + 1] = ctx.to_host(state);
    douts.push_back(randn(state.shape(), 31 + j));
  }
  return match_differences(
      ctx, subject, inputs, names, douts,
      [&](Context& c, const std::vector<Tensor>& in) { return run_piece(c, subject, batch, in); });
}

std::string gradients_flow_through_pieces(Context& ctx, const Subject& subject) {
  const std::vector<int64_t> lengths = {33, 1, 64};
  constexpr int64_t T = 98;
  const double bound = tolerance(DType::kF32, T);
  const Tensor x = input(T, 32), dy = input(T, 33);
  State state = subject.make_state(ctx);
  const Tensor streamed = subject.run_pieces(ctx, x, lengths, state);

  std::vector<Tensor> pieces, dys;
  for (int64_t at = 0, i = 0; i < std::ssize(lengths); at += lengths[static_cast<size_t>(i++)]) {
    const int64_t end = at + lengths[static_cast<size_t>(i)];
    pieces.push_back(ctx.to_host(x.slice_rows(at, end)));
    dys.push_back(ctx.to_host(dy.slice_rows(at, end)));
  }
  std::vector<Tensor> parts, last;
  const auto chain = [&](Context& c, const std::vector<Tensor>& inputs) {
    parts.clear();
    last.clear();
    int64_t at = 0;
    for (const Tensor& piece : inputs) {
      std::vector<Tensor> from{piece};
      from.insert(from.end(), last.begin(), last.end());
      last = run_piece(c, subject, SequenceBatch::single(piece.rows(), at), from);
      parts.push_back(last[0]);
      last.erase(last.begin());
      at += piece.rows();
    }
    return parts;
  };
  Gradients got = gradients(ctx, subject, pieces, dys, chain);
  Gradients want =
      gradients(ctx, subject, {x}, {dy}, [&](Context& c, const std::vector<Tensor>& inputs) {
        return std::vector<Tensor>{subject.run(c, inputs[0], SequenceBatch::single(T))};
      });
  std::string broken;
  for (size_t j = 0; j < last.size() && broken.empty(); ++j) {
    broken = compare(last[j].reshape(subject.layer->state_spec()[j].shape), state.blocks(0, j)[0],
                     bound, "last state");
  }
  int64_t at = 0;
  for (size_t i = 0; i < pieces.size() && broken.empty(); ++i) {
    const int64_t end = at + pieces[i].rows();
    broken =
        compare(parts[i], streamed.slice_rows(at, end), bound, fmt::format("y of piece {}", i));
    if (broken.empty()) {
      broken = compare(got.inputs[i], want.inputs[0].slice_rows(at, end), T,
                       fmt::format("dx of piece {}", i));
    }
    at = end;
  }
  for (Parameter* p : subject.trained()) {
    if (!broken.empty()) break;
    const uint64_t id = p->value.grad_id();
    // A sum over all tokens of terms of either sign: half the digits may go.
    broken = compare(got.sinks[id], want.sinks[id], 0x1p-12, "gradient of " + p->name);
  }
  return broken;
}

std::string recompute_changes_nothing(Context& ctx, const Subject& subject) {
  const SequenceBatch batch = batch_of({9, 70}, 0);
  const Tensor x = input(batch.tokens(), 26), dy = input(batch.tokens(), 27);
  const Forward forward = [&](Context& c, const std::vector<Tensor>& inputs) {
    return std::vector<Tensor>{subject.run(c, inputs[0], batch)};
  };
  Gradients once = gradients(ctx, subject, {x}, {dy}, forward);
  Gradients again = gradients(
      ctx, subject, {x}, {dy},
      [&](Context& c, const std::vector<Tensor>& inputs) { return recompute(c, inputs, forward); });
  if (!same_bits(once.inputs[0], again.inputs[0])) return "dx differs";
  for (Parameter* p : subject.trained()) {
    if (!same_bits(once.sinks[p->value.grad_id()], again.sinks[p->value.grad_id()])) {
      return p->name + ": gradient differs";
    }
  }
  return "";
}

}  // namespace braid::test
