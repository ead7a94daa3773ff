#include "braid/model/stack_spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "braid/core/error.h"
#include "braid/model/json.h"

namespace braid {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_name(char c) { return is_letter(c) || is_digit(c) || c == '_'; }
bool is_value(char c) { return is_name(c) || c == '.' || c == '/' || c == '+' || c == '-'; }

class Parser {
 public:
  Parser(std::string_view text, std::span<const std::string_view> known, const StackLimits& limits,
         std::string_view subject = "stack", std::string_view item = "sublayer")
      : text_(text), known_(known), limits_(limits), subject_(subject), item_(item) {}

  std::vector<ParallelSpec> parse() {
    std::vector<ParallelSpec> stack = parse_items(0);
    if (at_ < text_.size()) refuse("a sublayer or the end");
    return stack;
  }

  SublayerSpec parse_single() {
    SublayerSpec spec = parse_sublayer();
    if (at_ < text_.size()) refuse("the end");
    return spec;
  }

 private:
  std::string_view text_;
  std::span<const std::string_view> known_;
  StackLimits limits_;
  std::string_view subject_, item_;
  size_t at_ = 0;

  int column() const { return static_cast<int>(at_) + 1; }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  [[noreturn]] void refuse(std::string_view wanted) const {
    fail(ErrorKind::kUsage, "{}: column {}: found {}, want {}", subject_, column(),
         at_ < text_.size() ? quote(text_.substr(at_), 16) : "the end", wanted);
  }

  void skip_spaces() {
    while (is_space(peek())) ++at_;
  }

  std::vector<ParallelSpec> parse_items(int depth) {
    std::vector<ParallelSpec> items;
    skip_spaces();
    do {
      if (peek() == '(') {
        append(items, parse_group(depth));
      } else {
        append(items, {parse_parallel()});
      }
      if (at_ < text_.size() && !is_space(peek()) && peek() != '(' && peek() != ')') {
        refuse("a space, a parenthesis or the end");
      }
      skip_spaces();
    } while (at_ < text_.size() && peek() != ')');
    return items;
  }

  void append(std::vector<ParallelSpec>& items, const std::vector<ParallelSpec>& more) const {
    check(items.size() + more.size() <= limits_.max_sublayers,
          "stack: column {}: more than {} sublayers, want fewer", column(), limits_.max_sublayers);
    items.insert(items.end(), more.begin(), more.end());
  }

  std::vector<ParallelSpec> parse_group(int depth) {
    check(depth < limits_.max_depth, "stack: column {}: parentheses nested deeper than {}",
          column(), limits_.max_depth);
    const int open_column = column();
    ++at_;
    std::vector<ParallelSpec> once = parse_items(depth + 1);
    if (peek() != ')') {
      refuse(fmt::format("\")\" for the parenthesis of column {}", open_column));
    }
    ++at_;
    if (peek() != 'x') return once;
    ++at_;
    const size_t count = parse_count();
    check(count <= limits_.max_sublayers / once.size(),
          "stack: column {}: {} times {} sublayers, want at most {} in all", open_column, count,
          once.size(), limits_.max_sublayers);
    std::vector<ParallelSpec> items;
    items.reserve(count * once.size());
    for (size_t i = 0; i < count; ++i) items.insert(items.end(), once.begin(), once.end());
    return items;
  }

  size_t parse_count() {
    const size_t begin = at_;
    size_t count = 0;
    while (is_digit(peek()) && count <= limits_.max_sublayers) {
      count = count * 10 + static_cast<size_t>(peek() - '0');
      ++at_;
    }
    if (at_ == begin || count == 0 || count > limits_.max_sublayers) {
      at_ = begin;
      refuse(fmt::format("a count from 1 to {}", limits_.max_sublayers));
    }
    return count;
  }

  ParallelSpec parse_parallel() {
    constexpr size_t kMaxBranches = 64;
    const size_t begin = at_;
    ParallelSpec spec;
    spec.branches.push_back(parse_sublayer());
    while (peek() == '|') {
      if (spec.branches.size() == kMaxBranches) {
        refuse(fmt::format("at most {} branches side by side", kMaxBranches));
      }
      ++at_;
      spec.branches.push_back(parse_sublayer());
    }
    check(at_ - begin <= limits_.max_sublayer_bytes,
          "stack: column {}: a sublayer of {} bytes, want at most {}", begin + 1, at_ - begin,
          limits_.max_sublayer_bytes);
    return spec;
  }

  SublayerSpec parse_sublayer() {
    SublayerSpec spec{.name = {}, .args = {}, .column = column()};
    if (!is_letter(peek())) refuse(fmt::format("the name of a {}", item_));
    spec.name = take(is_name);
    if (!known_.empty() && std::ranges::find(known_, spec.name) == known_.end()) {
      at_ = static_cast<size_t>(spec.column) - 1;
      refuse(fmt::format("a {}, one of {}", item_, fmt::join(known_, ", ")));
    }
    if (peek() != ':') return spec;
    do {
      ++at_;
      parse_argument(spec);
    } while (peek() == ',');
    return spec;
  }

  void parse_argument(SublayerSpec& spec) {
    SpecArg arg{.key = {}, .value = {}, .column = column()};
    arg.value = take(is_value);
    if (arg.value.empty()) refuse("VALUE or KEY=VALUE");
    if (peek() == '=') {
      at_ = static_cast<size_t>(arg.column) - 1;
      if (!is_letter(peek())) refuse("a key that begins with a letter");
      arg.key = take(is_name);
      if (peek() != '=') refuse("\"=\"");
      ++at_;
      arg.value = take(is_value);
      if (arg.value.empty()) refuse(fmt::format("a value for {}", arg.key));
      for (const SpecArg& other : spec.args) {
        check(other.key != arg.key, "{}: column {}: {} is given twice, want it once", subject_,
              arg.column, arg.key);
      }
    }
    constexpr size_t kMaxArguments = 64;
    check(spec.args.size() < kMaxArguments, "{}: column {}: more than {} options for {}", subject_,
          arg.column, kMaxArguments, spec.name);
    spec.args.push_back(std::move(arg));
  }

  template <class Accept>
  std::string take(Accept accept) {
    const size_t begin = at_;
    while (at_ < text_.size() && accept(text_[at_])) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
};

// The longest run at `begin`, over all periods, that repetition shortens. Returns the period and
// the count; (1, 1) if nothing repeats. Cost: O(n) comparisons per period, periods up to 64.
std::pair<size_t, size_t> best_repeat(std::span<const size_t> ids, size_t begin) {
  constexpr size_t kMaxPeriod = 64;
  std::pair<size_t, size_t> best{1, 1};
  const size_t left = ids.size() - begin;
  for (size_t period = 1; period <= std::min(kMaxPeriod, left / 2); ++period) {
    size_t end = begin + period;
    while (end < ids.size() && ids[end] == ids[end - period]) ++end;
    const size_t count = (end - begin) / period;
    if (count > 1 && period * count > best.first * best.second) best = {period, count};
  }
  return best;
}

}  // namespace

std::vector<ParallelSpec> parse_stack(std::string_view text,
                                      std::span<const std::string_view> known,
                                      const StackLimits& limits) {
  check(text.size() <= limits.max_bytes, ErrorKind::kResource,
        "stack: {} bytes of text, want at most {}", text.size(), limits.max_bytes);
  return Parser(text, known, limits).parse();
}

SublayerSpec parse_single_spec(std::string_view text, std::string_view subject,
                               std::span<const std::string_view> known) {
  const StackLimits limits;
  check(text.size() <= limits.max_sublayer_bytes, ErrorKind::kResource,
        "{}: {} bytes of text, want at most {}", subject, text.size(), limits.max_sublayer_bytes);
  return Parser(text, known, limits, subject, subject).parse_single();
}

std::string to_string(const SublayerSpec& spec) {
  std::string text = spec.name;
  char separator = ':';
  for (const SpecArg& arg : spec.args) {
    text += separator;
    if (!arg.key.empty()) text += arg.key + "=";
    text += arg.value;
    separator = ',';
  }
  return text;
}

std::string to_string(const ParallelSpec& spec) {
  std::string text;
  for (const SublayerSpec& branch : spec.branches) {
    if (!text.empty()) text += '|';
    text += to_string(branch);
  }
  return text;
}

std::string print_stack(std::span<const ParallelSpec> stack) {
  // Equal texts get equal numbers, so that comparing runs is cheap.
  std::map<std::string, size_t> numbers;
  std::vector<const std::string*> texts;
  std::vector<size_t> ids;
  for (const ParallelSpec& spec : stack) {
    const auto [it, added] = numbers.try_emplace(to_string(spec), texts.size());
    if (added) texts.push_back(&it->first);
    ids.push_back(it->second);
  }
  std::string out;
  for (size_t i = 0; i < ids.size();) {
    const auto [period, count] = best_repeat(ids, i);
    if (!out.empty()) out += ' ';
    if (count > 1) out += '(';
    for (size_t j = 0; j < period; ++j) {
      if (j > 0) out += ' ';
      out += *texts[ids[i + j]];
    }
    if (count > 1) out += fmt::format(")x{}", count);
    i += period * count;
  }
  return out;
}

}  // namespace braid
