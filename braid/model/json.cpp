#include "braid/model/json.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/nn/spec.h"

namespace braid {
namespace {

using nlohmann::json;

// Builds the document and refuses, while reading, what nlohmann's own builder lets pass: repeated
// keys, unlimited depth, unlimited numbers of values.
class Builder final : public nlohmann::json_sax<json> {
 public:
  Builder(std::string_view source, const JsonLimits& limits) : source_(source), limits_(limits) {}

  json take() { return std::move(root_); }

  bool null() override { return add(json()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    check(!open_.back()->contains(value), ErrorKind::kFormat, "{}: key {} is given twice", source_,
          quote(value));
    key_ = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override {
    const std::string_view what = error.what();
    const bool utf8 = what.find("UTF-8") != std::string_view::npos;
    fail(ErrorKind::kFormat, "{}: byte {}: {} {}", source_, position,
         utf8 ? "invalid UTF-8 near" : "not JSON near", quote(last_token));
  }

 private:
  std::string_view source_;
  JsonLimits limits_;
  json root_;
  std::vector<json*> open_;  // the objects and arrays around the next value
  std::string key_;
  size_t values_ = 0;

  json* place(json value) {
    check(++values_ <= limits_.max_values, ErrorKind::kResource,
          "{}: more than {} JSON values, want fewer", source_, limits_.max_values);
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }

  bool add(json value) {
    place(std::move(value));
    return true;
  }

  bool open(json value) {
    check(static_cast<int>(open_.size()) < limits_.max_depth, ErrorKind::kFormat,
          "{}: JSON nested deeper than {} levels", source_, limits_.max_depth);
    open_.push_back(place(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }
};

// Python writes infinities as bare words, which JSON has not.
std::string replace_python_numbers(std::string_view text) {
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\' && i + 1 < text.size()) {
      out += c;
      out += text[++i];
      continue;
    }
    if (c == '"') in_string = !in_string;
    if (!in_string) {
      bool replaced = false;
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (text.substr(i, word.size()) != word) continue;
        out += fmt::format(R"({{"__float__": "{}"}})", word);
        i += word.size() - 1;
        replaced = true;
        break;
      }
      if (replaced) continue;
    }
    out += c;
  }
  return out;
}

// Bytes of the UTF-8 sequence that `text` begins with; 0 where it is none.
size_t utf8_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0x80              ? 1
                        : (lead & 0xe0u) == 0xc0 ? 2
                        : (lead & 0xf0u) == 0xe0 ? 3
                        : (lead & 0xf8u) == 0xf0 ? 4
                                                 : 0;
  if (length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0u) != 0x80) return 0;
  }
  return length;
}

std::optional<double> as_number(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_object() || value.size() != 1 || !value.contains("__float__")) return {};
  const json& text = value["__float__"];
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  return {};
}

std::optional<int64_t> as_integer(const json& value) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return {};
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return {};
}

std::string number_wanted(double min, double max) {
  if (max >= std::numeric_limits<double>::max()) {
    return fmt::format("a number of at least {}", format_number(min));
  }
  return fmt::format("a number from {} to {}", format_number(min), format_number(max));
}

}  // namespace

json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits) {
  check(text.size() <= limits.max_bytes, ErrorKind::kResource,
        "{}: {} bytes of JSON, want at most {}", source, text.size(), limits.max_bytes);
  std::string replaced;
  if (limits.python_numbers) {
    replaced = replace_python_numbers(text);
    text = replaced;
  }
  Builder builder(source, limits);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

json read_json(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse_json(read_text(path, limits.max_bytes), path.string(), limits);
}

std::string quote(std::string_view text, size_t max_length) {
  std::string out = "\"";
  size_t i = 0;
  while (i < text.size() && i < max_length) {
    const size_t length = utf8_length(text.substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    if (length == 0 || byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  return out + (i < text.size() ? "...\"" : "\"");
}

std::string describe(const json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (const auto number = as_number(value); number && value.is_object()) {
    return format_number(*number);
  }
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  return value.dump();
}

JsonObject::JsonObject(const json& value, std::string source)
    : value_(&value), source_(std::move(source)) {
  check(value.is_object(), ErrorKind::kFormat, "{}: holds {}, want an object", source_,
        describe(value));
}

const json* JsonObject::find(std::string_view key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

const json& JsonObject::at(std::string_view key, std::string_view wanted) const {
  const json* value = find(key);
  if (value == nullptr) refuse(key, wanted);
  return *value;
}

void JsonObject::refuse(std::string_view key, std::string_view wanted) const {
  const json* value = find(key);
  fail(ErrorKind::kFormat, "{}: {} is {}, want {}", source_, key,
       value == nullptr ? "missing" : describe(*value), wanted);
}

int64_t JsonObject::integer(std::string_view key, int64_t min, int64_t max) const {
  const std::string wanted = fmt::format("an integer from {} to {}", min, max);
  const auto value = as_integer(at(key, wanted));
  if (!value || *value < min || *value > max) refuse(key, wanted);
  return *value;
}

int64_t JsonObject::integer_or(std::string_view key, int64_t fallback, int64_t min,
                               int64_t max) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double JsonObject::number(std::string_view key, double min, double max) const {
  const std::string wanted = number_wanted(min, max);
  const auto value = as_number(at(key, wanted));
  if (!value || *value < min || *value > max) refuse(key, wanted);
  return *value;
}

double JsonObject::number_or(std::string_view key, double fallback, double min, double max) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool JsonObject::flag_or(std::string_view key, bool fallback) const {
  const json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) refuse(key, "true or false");
  return value->get<bool>();
}

std::string JsonObject::text(std::string_view key) const {
  const json& value = at(key, "a string");
  if (!value.is_string()) refuse(key, "a string");
  return value.get<std::string>();
}

std::string JsonObject::text_or(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : std::string(fallback);
}

std::vector<double> JsonObject::numbers(std::string_view key, double min, double max) const {
  const std::string wanted = "a list, each " + number_wanted(min, max);
  const json& list = at(key, wanted);
  if (!list.is_array()) refuse(key, wanted);
  std::vector<double> values;
  for (const json& item : list) {
    const auto value = as_number(item);
    check(value && *value >= min && *value <= max, ErrorKind::kFormat, "{}: {}[{}] is {}, want {}",
          source_, key, values.size(), describe(item), number_wanted(min, max));
    values.push_back(*value);
  }
  return values;
}

std::vector<int64_t> JsonObject::integers_or_one(std::string_view key, int64_t min,
                                                 int64_t max) const {
  const json* list = find(key);
  if (list == nullptr) return {};
  if (!list->is_array()) return {integer(key, min, max)};
  std::vector<int64_t> values;
  for (const json& item : *list) {
    const auto value = as_integer(item);
    check(value && *value >= min && *value <= max, ErrorKind::kFormat,
          "{}: {}[{}] is {}, want an integer from {} to {}", source_, key, values.size(),
          describe(item), min, max);
    values.push_back(*value);
  }
  return values;
}

JsonObject JsonObject::object(std::string_view key) const {
  return JsonObject(at(key, "an object"), fmt::format("{}: {}", source_, key));
}

}  // namespace braid
