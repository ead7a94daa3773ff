#include "braid/nn/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "braid/core/error.h"

namespace braid {

bool operator==(const SpecArg& a, const SpecArg& b) { return a.key == b.key && a.value == b.value; }

bool operator==(const SublayerSpec& a, const SublayerSpec& b) {
  return a.name == b.name && a.args == b.args;
}

bool operator==(const ParallelSpec& a, const ParallelSpec& b) { return a.branches == b.branches; }

std::string format_number(double value) {
  // The shortest form of a double that is a small integer needs no point: 10000, not 10000.0.
  if (std::abs(value) < 1e15 && value == std::floor(value)) {
    return fmt::format("{}", static_cast<int64_t>(value));
  }
  return fmt::format("{}", value);
}

bool parse_number(std::string_view text, double* value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *value);
  return result.ec == std::errc() && result.ptr == end && !std::isnan(*value);
}

bool parse_integer(std::string_view text, int64_t* value) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *value);
  return result.ec == std::errc() && result.ptr == end;
}

namespace {

std::string range(double min, double max) {
  const double largest = std::numeric_limits<double>::max();
  if (min <= -largest && max >= largest) return "";
  if (max >= largest) return fmt::format(" of at least {}", format_number(min));
  return fmt::format(" from {} to {}", format_number(min), format_number(max));
}

}  // namespace

SpecOptions::SpecOptions(const SublayerSpec& spec) : spec_(&spec), used_(spec.args.size()) {
  for (size_t i = 0; i < spec.args.size(); ++i) {
    const SpecArg& arg = spec.args[i];
    if (!arg.key.empty() && find(arg.key) != &arg) {
      fail_at(arg.column, fmt::format("{} is given twice, want it once", arg.key));
    }
  }
}

void SpecOptions::fail_at(int column, std::string_view what) const {
  if (column <= 0) fail(ErrorKind::kUsage, "{}: {}", spec_->name, what);
  fail(ErrorKind::kUsage, "{}: column {}: {}", spec_->name, column, what);
}

void SpecOptions::fail_value(const SpecArg& arg, std::string_view key,
                             std::string_view wanted) const {
  fail_at(arg.column, fmt::format("{} is \"{}\", want {}", key, arg.value, wanted));
}

const SpecArg* SpecOptions::find(std::string_view key) const {
  const auto it = std::ranges::find(spec_->args, key, &SpecArg::key);
  return it == spec_->args.end() ? nullptr : &*it;
}

const SpecArg* SpecOptions::take(std::string_view key) {
  asked_.emplace_back(key);
  const SpecArg* arg = find(key);
  if (arg != nullptr) used_[static_cast<size_t>(arg - spec_->args.data())] = true;
  return arg;
}

const SpecArg* SpecOptions::take_positional(std::string_view name) {
  const SpecArg* named = take(name);
  const auto begin = spec_->args.begin() + static_cast<ptrdiff_t>(next_positional_);
  const auto it = std::ranges::find(begin, spec_->args.end(), std::string_view(), &SpecArg::key);
  if (it == spec_->args.end()) return named;
  if (named != nullptr) fail_at(it->column, fmt::format("{} is given twice, want it once", name));
  next_positional_ = static_cast<size_t>(it - spec_->args.begin()) + 1;
  used_[next_positional_ - 1] = true;
  positional_.emplace_back(name, &*it);
  return &*it;
}

const SpecArg& SpecOptions::want_positional(std::string_view name, std::string_view wanted) {
  const SpecArg* arg = take_positional(name);
  if (arg == nullptr) {
    fail_at(spec_->column,
            fmt::format("{} is missing, want {}, as in {}:{}", name, wanted, spec_->name, "VALUE"));
  }
  return *arg;
}

int64_t SpecOptions::to_integer(const SpecArg& arg, std::string_view key, int64_t min,
                                int64_t max) const {
  int64_t value = 0;
  if (!parse_integer(arg.value, &value) || value < min || value > max) {
    fail_value(arg, key, fmt::format("an integer from {} to {}", min, max));
  }
  return value;
}

int64_t SpecOptions::integer(std::string_view key, int64_t fallback, int64_t min, int64_t max) {
  const SpecArg* arg = take(key);
  return arg == nullptr ? fallback : to_integer(*arg, key, min, max);
}

double SpecOptions::number(std::string_view key, double fallback, double min, double max) {
  const SpecArg* arg = take(key);
  if (arg == nullptr) return fallback;
  double value = 0;
  if (!parse_number(arg->value, &value) || value < min || value > max) {
    fail_value(*arg, key, "a number" + range(min, max));
  }
  return value;
}

bool SpecOptions::flag(std::string_view key, bool fallback) {
  const SpecArg* arg = take(key);
  if (arg == nullptr) return fallback;
  if (arg->value != "0" && arg->value != "1") fail_value(*arg, key, "0 or 1");
  return arg->value == "1";
}

std::string SpecOptions::text(std::string_view key, std::string_view fallback,
                              std::initializer_list<std::string_view> choices) {
  const SpecArg* arg = take(key);
  if (arg == nullptr) return std::string(fallback);
  if (choices.size() > 0 && std::ranges::find(choices, arg->value) == choices.end()) {
    fail_value(*arg, key, fmt::format("one of {}", fmt::join(choices, ", ")));
  }
  return arg->value;
}

std::vector<double> SpecOptions::numbers(std::string_view key, double min, double max) {
  const SpecArg* arg = take(key);
  std::vector<double> values;
  if (arg == nullptr) return values;
  std::string_view rest = arg->value;
  while (true) {
    const size_t slash = std::min(rest.find('/'), rest.size());
    double value = 0;
    if (!parse_number(rest.substr(0, slash), &value) || value < min || value > max) {
      fail_value(*arg, key, fmt::format("numbers{} separated by /", range(min, max)));
    }
    values.push_back(value);
    if (slash == rest.size()) return values;
    rest.remove_prefix(slash + 1);
  }
}

int64_t SpecOptions::positional_integer(std::string_view name, int64_t min, int64_t max) {
  const SpecArg& arg = want_positional(name, fmt::format("an integer from {} to {}", min, max));
  return to_integer(arg, name, min, max);
}

int64_t SpecOptions::positional_integer_or(std::string_view name, int64_t fallback, int64_t min,
                                           int64_t max) {
  const SpecArg* arg = take_positional(name);
  return arg == nullptr ? fallback : to_integer(*arg, name, min, max);
}

std::string SpecOptions::positional_text(std::string_view name) {
  return want_positional(name, "a value").value;
}

SpecOptions::Choice SpecOptions::positional_choice(std::string_view name, int64_t max) {
  const std::string wanted = fmt::format("E/k: k of E, with k from 1 to E and E up to {}", max);
  const SpecArg& arg = want_positional(name, wanted);
  const std::string_view text = arg.value;
  const size_t slash = std::min(text.find('/'), text.size());
  Choice choice{};
  if (slash == text.size() || !parse_integer(text.substr(0, slash), &choice.of) ||
      !parse_integer(text.substr(slash + 1), &choice.picked) || choice.of < 1 || choice.of > max ||
      choice.picked < 1 || choice.picked > choice.of) {
    fail_value(arg, name, wanted);
  }
  return choice;
}

void SpecOptions::refuse(std::string_view key, std::string_view wanted) const {
  const SpecArg* arg = find(key);
  for (const auto& [name, value] : positional_) {
    if (name == key) arg = value;
  }
  if (arg != nullptr) fail_value(*arg, key, wanted);
  fail_at(spec_->column, fmt::format("{} has its default, want {}", key, wanted));
}

void SpecOptions::done() const {
  for (size_t i = 0; i < spec_->args.size(); ++i) {
    if (used_[i]) continue;
    const SpecArg& arg = spec_->args[i];
    if (arg.key.empty()) {
      fail_at(arg.column, fmt::format("unexpected value \"{}\", want KEY=VALUE", arg.value));
    }
    fail_at(arg.column,
            fmt::format("unknown option {}, want one of {}", arg.key,
                        asked_.empty() ? "none" : fmt::format("{}", fmt::join(asked_, ", "))));
  }
}

}  // namespace braid
