#include <fmt/core.h>

#include "bench/ceilings.h"
#include "bench/model_bench.h"
#include "bench/op_bench.h"
#include "braid/infer/model.h"
#include "braid/model/stack_spec.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

struct BenchFlags {
  std::string model, op, preset, stack, train;
  int64_t width = 256, vocab = 4096;
  DeviceFlags device;
};

void run_bench(const BenchFlags& flags) {
  if (!flags.op.empty()) from_flag([&] { bench::find_op(flags.op); });
  Context ctx = flags.device.context();
  check(ctx.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "bench: the ceilings are those of the CPU, want --device cpu");
  const bench::Ceilings ceilings = bench::measure_ceilings(ctx);
  fmt::print(
      "this machine, {} threads: read {:.1f} GB/s, f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s\n",
      ctx.threads().size(), ceilings.read_bytes_per_second / 1e9,
      ceilings.f32_flops_per_second / 1e9, ceilings.bf16_flops_per_second / 1e9);
  bool any = false;
  if (!flags.op.empty()) {
    bench::bench_op(ctx, flags.op);
    any = true;
  }
  if (!flags.model.empty()) {
    const Model model = Model::load(ctx, flags.model);
    bench::bench_inference(ctx, model.stack(), ceilings);
    any = true;
  }
  if (!flags.preset.empty()) {
    bench::bench_inference(ctx, from_flag([&] { return find_preset(flags.preset); }), ceilings);
    any = true;
  }
  if (!flags.stack.empty()) {
    const Preset preset{
        .name = "--stack", .stack = flags.stack, .width = flags.width, .vocab = flags.vocab};
    from_flag([&] { return parse_stack(flags.stack); });
    bench::bench_inference(ctx, preset, ceilings);
    any = true;
  }
  if (!flags.train.empty()) {
    bench::bench_training(ctx, flags.train, flags.width, flags.vocab, ceilings);
    any = true;
  }
  if (any) return;
  for (const bench::OpBench& op : bench::op_benches()) bench::bench_op(ctx, op.name);
  for (const Preset& preset : presets()) {
    if (!preset.planning) bench::bench_inference(ctx, preset, ceilings);
  }
  bench::bench_training(ctx, "(mamba2:state=64 swa:256 swiglu)x4", 256, 4096, ceilings);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand(
      "bench", "Measure speed beside the ceilings of the same run; without options, everything");
  command->add_option("--model", flags->model, "model directory: prefill and decode");
  command->add_option("--op", flags->op, "one op, by the name of its folder: ssd, linear, ...");
  command->add_option("--preset", flags->preset,
                      "random weights at a known shape: " + preset_names());
  command->add_option("--stack", flags->stack, "prefill and decode of this stack spec");
  command->add_option("--train", flags->train, "a training step of this stack spec");
  command->add_option("--width", flags->width, "model width, with --stack and --train")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--vocab", flags->vocab, "vocabulary, with --stack and --train")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  flags->device.add(*command);
  command->callback([flags] { run_bench(*flags); });
}

}  // namespace braid
