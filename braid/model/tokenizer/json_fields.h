#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

namespace braid::tok {

/// The members of one JSON object of which every one must be read: what is left over when `done`
/// is called is refused by name. All failures are Error(kFormat), or kUnsupported for the unknown.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where);

  const std::string& where() const { return where_; }
  /// Null if the member is absent or null.
  const nlohmann::json* find(const char* key);
  const nlohmann::json& object(const char* key);
  const nlohmann::json& array(const char* key);
  bool boolean(const char* key, bool default_value);
  std::string string(const char* key);
  std::string string(const char* key, std::string_view default_value);
  int64_t integer(const char* key, int64_t min, int64_t max);
  void ignore(const char* key) { seen_.insert(key); }
  /// The member must be absent, null, or `value`.
  void expect(const char* key, const nlohmann::json& value);
  void done() const;

 private:
  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string, std::less<>> seen_;

  const nlohmann::json& need(const char* key);
};

/// An integer in [min, max].
int64_t to_integer(const nlohmann::json& value, std::string_view where, int64_t min, int64_t max);
const std::string& to_string(const nlohmann::json& value, std::string_view where);

}  // namespace braid::tok
