#include "tools/braid/experts.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace braid {

void ExpertFlags::add(CLI::App& command) {
  auto* workers_option =
      command.add_option("--workers", workers, "spread the experts over so many threads")
          ->check(CLI::Range(1, 1024));
  auto* mpi_option =
      command.add_flag("--mpi", mpi, "spread the experts over the processes of mpirun");
  mpi_option->excludes(workers_option);
  command
      .add_option("--experts-per-worker", options.slots,
                  "copies of experts a worker holds in each layer; 0: as few as hold all")
      ->check(CLI::Range(int64_t{0}, int64_t{65536}))
      ->capture_default_str();
  command
      .add_option("--replan-every", options.replan_every,
                  "steps after which experts are placed anew by the loads met; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--move-megabytes", move_megabytes,
                  "of experts that travel at a time, at least one expert")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command.add_option("--peer-timeout", peer_timeout, "seconds a worker waits for another")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
}

void run_ranks(const ExpertFlags& flags, const DeviceFlags& device,
               const std::function<void(Context& ctx, Transport* transport)>& body) {
  if (!flags.spread()) {
    if (flags.options.slots > 0 || flags.options.replan_every > 0) {
      throw UsageError(
          "--experts-per-worker and --replan-every: want --workers or --mpi beside them");
    }
    Context ctx = device.context();
    body(ctx, nullptr);
    return;
  }
  const TransportOptions options{
      .patience = std::chrono::milliseconds(std::llround(flags.peer_timeout * 1000))};
  if (flags.mpi) {
    run_on_mpi(
        options,
        [&](Transport& transport) {
          Context ctx = device.context();
          body(ctx, &transport);
        },
        [](int rank, std::string_view what) {
          report_error(fmt::format("rank {}: {}", rank, what));
        });
    return;
  }
  DeviceFlags of_worker = device;
  if (of_worker.threads == 0) {  // the cores are shared
    of_worker.threads = std::max(1, device.context().threads().size() / flags.workers);
  }
  run_on_threads(flags.workers, options, [&](Transport& transport) {
    Context ctx = of_worker.context();
    body(ctx, &transport);
  });
}

SharedModel load_shared(Context& ctx, Transport* transport, const ExpertFlags& flags,
                        const std::filesystem::path& directory) {
  SharedModel shared{.transport = transport, .host = nullptr, .model = std::nullopt};
  if (transport == nullptr) {
    shared.model = Model::load(ctx, directory);
    return shared;
  }
  ExpertParallelOptions options = flags.options;
  options.move_bytes = static_cast<size_t>(flags.move_megabytes * 1e6);
  shared.model = Model::load(ctx, directory, [&](const Stack& stack) -> ParameterFilter {
    shared.host =
        from_flag([&] { return std::make_unique<ExpertParallel>(*transport, stack, options); });
    return [host = shared.host.get()](std::string_view name) { return host->reads(name); };
  });
  return shared;
}

void SharedModel::finish(Context& ctx) const {
  if (host == nullptr) return;
  host->settle(ctx);
  transport->barrier();
}

void SharedModel::print_report() const {
  if (host == nullptr) return;
  const ExpertReport report = host->report();
  if (!first()) return;
  std::string text =
      fmt::format("workers {} over {}, {} steps, {} experts moved\n", report.resident_bytes.size(),
                  transport->name(), report.steps, report.moved_experts);
  for (size_t l = 0; l < report.layers.size(); ++l) {
    const ExpertReport::Layer& layer = report.layers[l];
    text += fmt::format(
        "expert layer {}: max/mean load {:.3f} before, {:.3f} after, placed anew {} times\n", l,
        layer.before, layer.after, layer.switches);
  }
  for (size_t r = 0; r < report.resident_bytes.size(); ++r) {
    text += fmt::format("worker {}: {} of {} expert bytes resident\n", r, report.resident_bytes[r],
                        report.all_bytes);
  }
  write_stdout(text);
}

}  // namespace braid
