#include "tools/braid/config_file.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "braid/model/json.h"
#include "tools/braid/commands.h"

namespace braid {
namespace {

std::string text_of(const nlohmann::json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  throw UsageError(fmt::format("{}: is {}, want text, a number, true or false, or a list of them",
                               where, describe(value)));
}

}  // namespace

void apply_config_file(CLI::App& command, const std::string& path) {
  const nlohmann::json config = read_json(path);
  if (!config.is_object()) {
    throw UsageError(fmt::format("{}: is {}, want an object", path, describe(config)));
  }
  for (const auto& [key, value] : config.items()) {
    const std::string where = fmt::format("{}: \"{}\"", path, key);
    CLI::Option* option = command.get_option_no_throw("--" + key);
    // The negated name of a flag ("untied") is the flag's own with false.
    const bool negated = option != nullptr && option->check_fname(key);
    if (option == nullptr || negated || key == "config" || key == "help") {
      throw UsageError(fmt::format("{}: no such option, want the long name of one", where));
    }
    if (option->count() > 0 || value.is_null()) continue;  // the command line wins
    try {
      if (value.is_array()) {
        for (const auto& element : value) option->add_result(text_of(element, where));
      } else {
        option->add_result(text_of(value, where));
      }
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      throw UsageError(fmt::format("{}: {}", where, error.what()));
    }
  }
}

void require_options(const CLI::App& command, std::initializer_list<const char*> options) {
  for (const char* name : options) {
    if (command.get_option(name)->count() == 0) {
      throw UsageError(fmt::format("{} is required", name));
    }
  }
}

}  // namespace braid
