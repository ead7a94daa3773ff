#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

struct JsonLimits {
  size_t max_bytes = size_t{256} << 20;
  int max_depth = 64;
  size_t max_values = size_t{1} << 25;
  /// Reads Python's bare `Infinity`, `-Infinity` and `NaN` as {"__float__": "Infinity"}.
  bool python_numbers = false;
};

/// Parses hostile text. `source` (a path) begins every message. Throws Error(kFormat) for what is
/// not JSON, is not UTF-8 or repeats a key, Error(kResource) for what exceeds the limits.
nlohmann::json parse_json(std::string_view text, std::string_view source,
                          const JsonLimits& limits = {});
nlohmann::json read_json(const std::filesystem::path& path, const JsonLimits& limits = {});

/// Text of a file as it may stand in a one-line message: in quotes, cut to `max_length` bytes,
/// without control characters.
std::string quote(std::string_view text, size_t max_length = 64);
/// A value in the same way: `"text"`, 12, `an object`.
std::string describe(const nlohmann::json& value);

/// A typed view of a JSON object. Each refusal names the source, the key, what was found and what
/// was wanted. A null counts as absent. Keeps a pointer to the value.
class JsonObject {
 public:
  /// Throws where `value` is not an object.
  JsonObject(const nlohmann::json& value, std::string source);

  bool has(std::string_view key) const { return find(key) != nullptr; }
  /// The value, or nullptr where it is absent or null.
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& at(std::string_view key, std::string_view wanted) const;

  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer_or(std::string_view key, int64_t fallback, int64_t min, int64_t max) const;
  /// Finite unless `max` is infinity; {"__float__": "Infinity"} is a number.
  double number(std::string_view key, double min = 0,
                double max = std::numeric_limits<double>::max()) const;
  double number_or(std::string_view key, double fallback, double min = 0,
                   double max = std::numeric_limits<double>::max()) const;
  bool flag_or(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text_or(std::string_view key, std::string_view fallback) const;
  std::vector<double> numbers(std::string_view key, double min, double max) const;
  /// A list of integers, or one alone; empty where absent.
  std::vector<int64_t> integers_or_one(std::string_view key, int64_t min, int64_t max) const;
  JsonObject object(std::string_view key) const;

  const std::string& source() const { return source_; }
  const nlohmann::json& value() const { return *value_; }
  /// "SOURCE: KEY is FOUND, want WANTED".
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;

 private:
  const nlohmann::json* value_;
  std::string source_;
};

}  // namespace braid
