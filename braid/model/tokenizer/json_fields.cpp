#include "braid/model/tokenizer/json_fields.h"

#include <limits>

#include "braid/core/error.h"
#include "braid/model/json.h"

namespace braid::tok {
int64_t to_integer(const nlohmann::json& value, std::string_view where, int64_t min, int64_t max) {
  int64_t number = -1;
  bool ok = value.is_number_integer();
  if (ok && value.is_number_unsigned()) {
    const auto large = value.get<uint64_t>();
    ok = large <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  }
  if (ok) number = value.get<int64_t>();
  check(ok && number >= min && number <= max, ErrorKind::kFormat,
        "{} is {}, want an integer from {} to {}", where, describe(value), min, max);
  return number;
}

const std::string& to_string(const nlohmann::json& value, std::string_view where) {
  check(value.is_string(), ErrorKind::kFormat, "{} is {}, want a string", where, describe(value));
  return value.get_ref<const std::string&>();
}

JsonFields::JsonFields(const nlohmann::json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  check(object.is_object(), ErrorKind::kFormat, "{} is {}, want an object", where_,
        describe(object));
}

const nlohmann::json* JsonFields::find(const char* key) {
  seen_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const nlohmann::json& JsonFields::need(const char* key) {
  const nlohmann::json* value = find(key);
  check(value != nullptr, ErrorKind::kFormat, "{} has no '{}'", where_, key);
  return *value;
}

const nlohmann::json& JsonFields::object(const char* key) {
  const nlohmann::json& value = need(key);
  check(value.is_object(), ErrorKind::kFormat, "{}.{} is {}, want an object", where_, key,
        describe(value));
  return value;
}

const nlohmann::json& JsonFields::array(const char* key) {
  const nlohmann::json& value = need(key);
  check(value.is_array(), ErrorKind::kFormat, "{}.{} is {}, want an array", where_, key,
        describe(value));
  return value;
}

bool JsonFields::boolean(const char* key, bool default_value) {
  const nlohmann::json* value = find(key);
  if (!value) return default_value;
  check(value->is_boolean(), ErrorKind::kFormat, "{}.{} is {}, want true or false", where_, key,
        describe(*value));
  return value->get<bool>();
}

std::string JsonFields::string(const char* key) {
  return to_string(need(key), fmt::format("{}.{}", where_, key));
}

std::string JsonFields::string(const char* key, std::string_view default_value) {
  return find(key) ? string(key) : std::string(default_value);
}

int64_t JsonFields::integer(const char* key, int64_t min, int64_t max) {
  return to_integer(need(key), fmt::format("{}.{}", where_, key), min, max);
}

void JsonFields::expect(const char* key, const nlohmann::json& value) {
  const nlohmann::json* found = find(key);
  check(!found || *found == value, ErrorKind::kUnsupported, "{}.{} is {}, only {} is read", where_,
        key, found ? describe(*found) : "", describe(value));
}

void JsonFields::done() const {
  for (const auto& [key, value] : object_.items()) {
    check(seen_.contains(key), ErrorKind::kUnsupported, "{}: unknown member {}", where_,
          quote(key));
  }
}

}  // namespace braid::tok
