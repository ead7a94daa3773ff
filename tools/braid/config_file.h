#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace braid {

/// Gives the options of `command` that the command line left out the values of a JSON object whose
/// keys are their long names: {"stack": "(swa:256 swiglu)x4", "lr": 3e-3, "data": ["a.txt"]}. A
/// relative path in it is relative to the working directory, as on the command line. Throws
/// UsageError for a key that is no option and for a value the option refuses.
void apply_config_file(CLI::App& command, const std::string& path);

/// Throws UsageError naming the first of `options` that neither gave.
void require_options(const CLI::App& command, std::initializer_list<const char*> options);

}  // namespace braid
