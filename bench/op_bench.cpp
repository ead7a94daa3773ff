#include "bench/op_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "bench/ceilings.h"
#include "bench/experts_bench.h"
#include "bench/linear_bench.h"
#include "bench/ops.h"
#include "bench/timing.h"
#include "braid/core/rng.h"

namespace braid::bench {
namespace {

constexpr int kRounds = 9;
constexpr double kLeastSeconds = 1e-3;  // of one timed body: shorter calls are repeated

// One line an op. To add one: its cases in a file ops_*.cpp, declared in ops.h.
constexpr OpBench kOps[] = {
    {"activation", &activation_cases},
    {"adamw", &adamw_cases},
    {"attention", &attention_cases},
    {"cross_entropy", &cross_entropy_cases},
    {"elementwise", &elementwise_cases},
    {"embedding", &embedding_cases},
    {"experts", [](Context& ctx, const Emit&) { bench_experts(ctx); }},
    {"favor_features", &favor_features_cases},
    {"gated_delta_rule", &gated_delta_rule_cases},
    {"gated_rms_norm", &gated_rms_norm_cases},
    {"gelu", &gelu_cases},
    {"l2_norm", &l2_norm_cases},
    {"lact", &lact_cases},
    {"latent_attention", &latent_attention_cases},
    {"layer_norm", &layer_norm_cases},
    {"linear", [](Context& ctx, const Emit&) { bench_linear(ctx); }},
    {"linear_attention", &linear_attention_cases},
    {"linformer", &linformer_cases},
    {"long_conv", &long_conv_cases},
    {"lrpe", &lrpe_cases},
    {"rms_norm", &rms_norm_cases},
    {"rope", &rope_cases},
    {"route", &route_cases},
    {"scale_columns", &scale_columns_cases},
    {"selective_scan", &selective_scan_cases},
    {"short_conv", &short_conv_cases},
    {"sine", &sine_cases},
    {"softplus_decay", &softplus_decay_cases},
    {"ssd", &ssd_cases},
    {"swiglu", &swiglu_cases},
    {"token_shift", &token_shift_cases},
    {"ttt", &ttt_cases},
    {"view", &view_cases},
    {"wkv7", &wkv7_cases},
    {"wkv7_inputs", &wkv7_inputs_cases},
    {"wkv7_output", &wkv7_output_cases},
};

void check_result(Context& ctx, std::string_view op, const OpCase& c) {
  const std::vector<double> want = c.reference();
  const Tensor y = c.run(ctx, c.inputs).tensors.at(0);
  check(!want.empty() && std::ssize(want) <= y.count(), "bench: {} {}: {} values to check of {}",
        op, c.size, want.size(), y.count());
  const std::vector<double> got = rows(y, 0, std::ssize(want) / y.row_count());
  double error = 0, scale = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error = std::isfinite(got[i]) ? std::max(error, std::abs(got[i] - want[i])) : INFINITY;
    scale = std::max(scale, std::abs(want[i]));
    if (!std::isfinite(error)) break;
  }
  const double bound = 16 * 0x1p-24 * std::sqrt(static_cast<double>(c.terms)) * scale;
  check(error <= bound, ErrorKind::kUnsupported,
        "bench: {} {} is {:.2e} off its reference, want {:.2e}", op, c.size, error, bound);
}

// Forward and backward, as training does them.
void run_with_vjp(Context& ctx, const OpCase& c, const std::vector<Tensor>& dys) {
  Tape tape;
  std::vector<Tensor> inputs = c.inputs;
  for (Tensor& x : inputs) {
    if (x.defined()) tape.watch(x);
  }
  Context taped = ctx.with_tape(&tape);
  tape.backward(ctx, c.run(taped, inputs).tensors, dys);
}

// Seconds of one call, from the median of a body that repeats it.
struct Timed {
  std::function<void()> body;
  int times = 1;
};
Timed timed(std::function<void()> body) {
  const double once = interleaved_medians(std::span(&body, 1), 3)[0];
  const int times = std::max(1, static_cast<int>(std::ceil(kLeastSeconds / std::max(once, 1e-7))));
  return {.body =
              [body = std::move(body), times] {
                for (int i = 0; i < times; ++i) body();
              },
          .times = times};
}

void measure(Context& ctx, CeilingProbe& read, CeilingProbe& f32, const OpCase& c) {
  std::vector<Tensor> dys;
  for (const Tensor& y : c.run(ctx, c.inputs).tensors) dys.push_back(random(y.shape(), 77));
  std::vector<Timed> timings = {timed([&] { c.run(ctx, c.inputs); })};
  if (c.differentiable) timings.push_back(timed([&] { run_with_vjp(ctx, c, dys); }));
  Context recurrent = ctx.with_form(Form::kRecurrent);
  if (c.differentiable && c.token_loop)
    timings.push_back(timed([&] { run_with_vjp(recurrent, c, dys); }));
  std::vector<std::function<void()>> bodies = {[&] { read.run(); }, [&] { f32.run(); }};
  for (const Timed& t : timings) bodies.push_back(t.body);
  const std::vector<double> seconds = interleaved_medians(bodies, kRounds);
  const double bandwidth = read.work() / seconds[0], peak = f32.work() / seconds[1];
  const double once = seconds[2] / timings[0].times;
  fmt::print(
      "  {:<34} {:>10.1f} us  {:>6.1f} GB/s {:>5.1f}% of {:>5.1f}  {:>7.1f} GFLOP/s {:>5.1f}% of "
      "{:>5.0f}",
      c.size, once * 1e6, c.bytes / once / 1e9, 100 * c.bytes / once / bandwidth, bandwidth / 1e9,
      c.flops / once / 1e9, 100 * c.flops / once / peak, peak / 1e9);
  if (c.differentiable) fmt::print("  with vjp {:>10.1f} us", seconds[3] / timings[1].times * 1e6);
  if (timings.size() > 2) {
    fmt::print(", {:.2f} of the token loop",
               seconds[3] / timings[1].times / (seconds[4] / timings[2].times));
  }
  fmt::print("\n");
}

}  // namespace

std::span<const OpBench> op_benches() { return kOps; }

const OpBench& find_op(std::string_view name) {
  std::string known;
  for (const OpBench& op : kOps) {
    if (op.name == name) return op;
    known += (known.empty() ? "" : ", ") + std::string(op.name);
  }
  fail(ErrorKind::kUsage, "bench: there is no op '{}', want one of {}", name, known);
}

void bench_op(Context& ctx, std::string_view name) {
  const OpBench& op = find_op(name);
  CeilingProbe read(ctx, CeilingProbe::kRead), f32(ctx, CeilingProbe::kF32);
  bool first = true;
  op.cases(ctx, [&](const OpCase& c) {
    check_result(ctx, name, c);
    if (std::exchange(first, false)) {
      fmt::print("{}: {} threads, medians of {} interleaved rounds\n", name, ctx.threads().size(),
                 kRounds);
    }
    measure(ctx, read, f32, c);
  });
}

Tensor random(Shape shape, uint64_t seed, float scale) {
  const Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * rng.normal(i);
  return host_tensor(std::move(values), shape);
}

std::vector<double> rows(const Tensor& x, int64_t begin, int64_t count) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(count * x.row_count()));
  for (int64_t i = begin; i < begin + count; ++i) {
    const float* row = x.f32() + i * x.row_stride();
    out.insert(out.end(), row, row + x.row_count());
  }
  return out;
}

double bytes_of(std::initializer_list<int64_t> counts) {
  double sum = 0;
  for (const int64_t count : counts) sum += static_cast<double>(count) * sizeof(float);
  return sum;
}

std::vector<Checked> checked_rows(const SequenceBatch& batch) {
  std::vector<Checked> checked;
  int64_t left = kCheckedRows;
  for (int64_t s = 0; s < batch.sequences() && left > 0; ++s) {
    const int64_t count = std::min(left, batch.length(s));
    checked.push_back({s, batch.offsets[static_cast<size_t>(s)], count});
    left -= count;
    if (count < batch.length(s)) break;  // what follows in the packed rows is not checked
  }
  return checked;
}

std::function<std::vector<double>()> by_sequence(
    const SequenceBatch& batch, std::function<std::vector<double>(const Checked&)> of) {
  return [checked = checked_rows(batch), of = std::move(of)] {
    std::vector<double> out;
    for (const Checked& part : checked) {
      const std::vector<double> y = of(part);
      out.insert(out.end(), y.begin(), y.end());
    }
    return out;
  };
}

Tensor initial_state(const SequenceBatch& batch, Shape shape) {
  return batch.length(0) == 1 ? random(shape, 20) : Tensor();
}
std::vector<double> state_of(const Tensor& initial, int64_t sequence) {
  return initial.defined() ? rows(initial, sequence, 1) : std::vector<double>{};
}

SequenceBatch packed(const std::vector<int64_t>& lengths) {
  SequenceBatch batch;
  for (const int64_t length : lengths) batch.add(length);
  return batch;
}

std::string describe(const SequenceBatch& batch) {
  if (batch.sequences() == 1) return fmt::format("{} tokens", batch.tokens());
  return fmt::format("{} x {} tokens", batch.sequences(), batch.length(0));
}

}  // namespace braid::bench
