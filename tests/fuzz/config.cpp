// A config.json of any content is refused with an Error, or becomes a model whose native config
// reads back as the same model.
#include "braid/model/config.h"

#include <nlohmann/json.hpp>

#include "braid/model/families/family.h"
#include "braid/model/json.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr braid::JsonLimits kLimits{.python_numbers = true};
  braid::ModelConfig config;
  const bool accepted = braid::fuzz::accepted([&] {
    config = braid::parse_config(
        braid::parse_json(braid::fuzz::text(data, size), "config.json", kLimits), "config.json");
  });
  if (!accepted) return 0;

  braid::fuzz::require(!config.sublayers.empty(), "a model without sublayers");
  const std::string text = braid::print_config(config);
  std::string again;
  const bool read_back = braid::fuzz::accepted([&] {
    again = braid::print_config(braid::parse_config(braid::parse_json(text, "again"), "again"));
  });
  braid::fuzz::require(read_back && again == text, "a native config that does not read back");

  const braid::Family* family = braid::find_family(config.model_type);
  if (family != nullptr && config.sublayers.size() <= 64) {
    for (const auto& [name, parts] : family->weights(config)) {
      braid::fuzz::require(!parts.empty(), "a parameter made of nothing");
    }
  }
  return 0;
}
