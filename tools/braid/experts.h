#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "braid/infer/model.h"
#include "braid/model/expert_parallel.h"
#include "tools/braid/commands.h"

namespace braid {

/// --workers, --mpi and their options: the experts of a model spread over ranks.
struct ExpertFlags {
  int workers = 0;
  bool mpi = false;
  double peer_timeout = 600;
  double move_megabytes = 64;
  ExpertParallelOptions options;

  void add(CLI::App& command);
  bool spread() const { return workers > 0 || mpi; }
};

/// A model on one rank of those that share its experts, or whole.
struct SharedModel {
  Transport* transport = nullptr;        // null: whole
  std::unique_ptr<ExpertParallel> host;  // null: whole
  std::optional<Model> model;

  const Stack& stack() const { return model->stack(); }
  /// Of several ranks only the first prints and writes files.
  bool first() const { return transport == nullptr || transport->rank() == 0; }
  /// Called by all ranks before the first one writes: nobody has failed until now.
  void finish(Context& ctx) const;
  /// What was balanced, on stdout of the first rank; called by all.
  void print_report() const;
};

/// Calls `body` once, or on every rank of the workers that the flags ask for.
void run_ranks(const ExpertFlags& flags, const DeviceFlags& device,
               const std::function<void(Context& ctx, Transport* transport)>& body);

SharedModel load_shared(Context& ctx, Transport* transport, const ExpertFlags& flags,
                        const std::filesystem::path& directory);

}  // namespace braid
