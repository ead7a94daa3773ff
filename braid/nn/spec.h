#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace braid {

/// One argument of a sublayer as written: `heads=8` has a key, the `1024` of `swa:1024` has none.
/// Columns count from 1; 0 stands for a spec that no text gave (one made from another config).
struct SpecArg {
  std::string key, value;
  int column = 0;
};

/// `swa:1024,heads=8`.
struct SublayerSpec {
  std::string name;
  std::vector<SpecArg> args;
  int column = 0;
};

/// One residual sublayer. More than one branch, `a|b`, runs side by side on one normed input.
struct ParallelSpec {
  std::vector<SublayerSpec> branches;
};

/// Equal up to columns.
bool operator==(const SpecArg& a, const SpecArg& b);
bool operator==(const SublayerSpec& a, const SublayerSpec& b);
bool operator==(const ParallelSpec& a, const ParallelSpec& b);

/// The shortest text that reads back as the same number; "inf" for infinity.
std::string format_number(double value);
/// False where the whole text is not a decimal number (or "inf"); NaN is none.
bool parse_number(std::string_view text, double* value);
bool parse_integer(std::string_view text, int64_t* value);

/// Reads the options of one sublayer by type. Every refusal is one line that names the sublayer,
/// the option, its column, what was found and what was wanted:
///
///   attn: column 6: heads is "x", want an integer from 1 to 65536
///
/// A module asks for all it knows and then calls `done`, which refuses what nobody asked for.
/// Defaults are the module's own and are not checked against the limits. Keeps a pointer to `spec`.
class SpecOptions {
 public:
  static constexpr int64_t kMaxInteger = (int64_t{1} << 31) - 1;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  /// Refuses repeated keys.
  explicit SpecOptions(const SublayerSpec& spec);

  const SublayerSpec& spec() const { return *spec_; }
  /// Whether the option is written out, so that a default can depend on others.
  bool has(std::string_view key) const { return find(key) != nullptr; }

  int64_t integer(std::string_view key, int64_t fallback, int64_t min = 1,
                  int64_t max = kMaxInteger);
  /// Finite, unless `max` is infinity itself.
  double number(std::string_view key, double fallback, double min = 0,
                double max = std::numeric_limits<double>::max());
  /// 0 or 1.
  bool flag(std::string_view key, bool fallback);
  /// One of `choices` if there are any.
  std::string text(std::string_view key, std::string_view fallback,
                   std::initializer_list<std::string_view> choices = {});
  /// A list `1.0/1.05/1.1`; empty where the option is absent.
  std::vector<double> numbers(std::string_view key, double min = 0,
                              double max = std::numeric_limits<double>::max());

  /// The next value without a key, which may also be written `name=value`.
  int64_t positional_integer(std::string_view name, int64_t min = 1, int64_t max = kMaxInteger);
  int64_t positional_integer_or(std::string_view name, int64_t fallback, int64_t min = 1,
                                int64_t max = kMaxInteger);
  std::string positional_text(std::string_view name);
  /// The next value without a key, written `of/picked` with 1 <= picked <= of <= max.
  struct Choice {
    int64_t of, picked;
  };
  Choice positional_choice(std::string_view name, int64_t max = kMaxInteger);

  /// Refuses the sublayer for `key` (for sizes that contradict each other).
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;
  /// Refuses options that were never asked for.
  void done() const;

 private:
  const SublayerSpec* spec_;
  std::vector<std::string> asked_;
  std::vector<bool> used_;
  size_t next_positional_ = 0;
  std::vector<std::pair<std::string, const SpecArg*>> positional_;  // what a value stood for

  const SpecArg* find(std::string_view key) const;
  const SpecArg* take(std::string_view key);
  const SpecArg* take_positional(std::string_view name);
  const SpecArg& want_positional(std::string_view name, std::string_view wanted);
  [[noreturn]] void fail_at(int column, std::string_view what) const;
  [[noreturn]] void fail_value(const SpecArg& arg, std::string_view key,
                               std::string_view wanted) const;
  int64_t to_integer(const SpecArg& arg, std::string_view key, int64_t min, int64_t max) const;
};

}  // namespace braid
