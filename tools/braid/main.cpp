// The command line: one file a subcommand. Exit 0 on success, 2 on bad usage, 1 on any other error,
// which is one line on stderr.

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <string>

#include "braid/core/build_config.h"
#include "braid/core/error.h"
#include "tools/braid/commands.h"

namespace {

using braid::report_error;

void check_command(const CLI::App& app, const std::string& name) {
  if (name.starts_with('-')) return;
  std::string known;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == name) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  throw braid::UsageError("there is no command '" + name + "', want one of " + known);
}

// What a whole number of a flag is refused for: the parser itself would saturate one that is too
// large and wrap a negative one.
std::string whole_number_fits(const std::string& text, bool is_signed) {
  errno = 0;
  if (is_signed) {
    std::strtoll(text.c_str(), nullptr, 0);
  } else {
    std::strtoull(text.c_str(), nullptr, 0);
  }
  const bool negative = !is_signed && text.starts_with('-');
  if (errno != ERANGE && !negative) return "";
  return text + (negative ? " is negative, want 0 or more" : " is too large a number");
}

void check_whole_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const bool is_signed = option->get_type_name().starts_with("INT");
    if (!is_signed && !option->get_type_name().starts_with("UINT")) continue;
    option->check(
        [is_signed](const std::string& text) { return whole_number_fits(text, is_signed); });
  }
  for (CLI::App* command : app.get_subcommands({})) check_whole_numbers(*command);
}

// A full disk shows only here when the output is a file.
bool stdout_arrived() {
  std::cout.flush();
  if (std::cout.good() && std::fflush(stdout) == 0) return true;
  report_error(std::string("cannot write the output: ") + std::strerror(errno));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Braid: trains and runs hybrid sequence models");
  app.set_version_flag("--version", braid::kVersion);
  app.require_subcommand(1);
  try {
    braid::add_run_command(app);
    braid::add_logits_command(app);
    braid::add_train_command(app);
    braid::add_eval_command(app);
    braid::add_merge_experts_command(app);
    braid::add_inspect_command(app);
    braid::add_tokenizer_command(app);
    braid::add_bench_command(app);
    check_whole_numbers(app);
    check_command(app, argc > 1 ? argv[1] : "-");
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      app.exit(error);
      return stdout_arrived() ? 0 : 1;
    }
    report_error(std::string(error.what()) + " (see --help)");
    return 2;
  } catch (const braid::UsageError& error) {
    report_error(error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    report_error("out of memory");
    return 1;
  } catch (const std::exception& error) {
    report_error(error.what());
    return 1;
  }
  return stdout_arrived() ? 0 : 1;
}
