// The command line: one file a subcommand. Exit 0 on success, 2 on bad usage, 1 on any other error,
// which is one line on stderr.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>

#include "braid/core/build_config.h"
#include "braid/core/error.h"
#include "tools/braid/commands.h"

int main(int argc, char** argv) {
  CLI::App app("Braid: trains and runs hybrid sequence models");
  app.set_version_flag("--version", braid::kVersion);
  app.require_subcommand(1);
  try {
    braid::add_run_command(app);
    braid::add_logits_command(app);
    braid::add_train_command(app);
    braid::add_eval_command(app);
    braid::add_inspect_command(app);
    braid::add_tokenizer_command(app);
    braid::add_bench_command(app);
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "braid: %s (see --help)\n", error.what());
    return 2;
  } catch (const braid::UsageError& error) {
    std::fprintf(stderr, "braid: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "braid: out of memory\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "braid: %s\n", error.what());
    return 1;
  }
  // A full disk shows only here when the output is a file.
  if (std::fflush(stdout) != 0) {
    std::perror("braid: cannot write the output");
    return 1;
  }
  return 0;
}
