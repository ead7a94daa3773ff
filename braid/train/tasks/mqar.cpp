// Multi-query associative recall, the protocol of Zoology (Arora et al., arXiv:2312.04927):
//
//   k1 v1 k2 v2 ... kP vP | every key once more, at random places among filler
//
// Keys are different ids of 1..V/2-1, values different ids of V/2..V-1. The places are every second
// position after the pairs; slot i = 1, 2, ... of them is drawn without replacement with a chance
// in proportion to i^(a-1), a = 0.01, so that most keys are asked for soon. The answer, at the
// position of the asked key, is its value, which is never shown again. Filler is id 0, or, with
// random_non_queries=1, any id at all.

#include <algorithm>
#include <cmath>
#include <utility>

#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

struct MqarOptions {
  int64_t pairs;
  bool random_non_queries;
  double power;  // a
};

// `count` of the slots 0..slots-1, one after the other without replacement, the chance of slot i in
// proportion to (i + 1)^exponent: the order of exponential clocks with these rates.
std::vector<int64_t> power_law_slots(Draws& draws, int64_t slots, int64_t count, double exponent) {
  std::vector<std::pair<double, int64_t>> clocks;
  clocks.reserve(static_cast<size_t>(slots));
  for (int64_t i = 0; i < slots; ++i) {
    const double rate = std::pow(static_cast<double>(i + 1), exponent);
    clocks.emplace_back(-std::log(draws.uniform()) / rate, i);
  }
  std::partial_sort(clocks.begin(), clocks.begin() + count, clocks.end());
  std::vector<int64_t> first;
  for (int64_t i = 0; i < count; ++i) first.push_back(clocks[static_cast<size_t>(i)].second);
  return first;
}

class Mqar final : public Task {
 public:
  Mqar(const TaskShape& shape, const MqarOptions& options) : Task(shape), options_(options) {}

  void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const override {
    const int64_t pairs = options_.pairs, half = shape().vocab / 2;
    const auto keys = draws.distinct(half - 1, pairs);
    const auto values = draws.distinct(shape().vocab - half, pairs);
    const auto slots =
        power_law_slots(draws, (shape().length - 2 * pairs) / 2, pairs, options_.power - 1);
    const auto asked = static_cast<size_t>(2 * pairs);
    for (size_t i = asked; i < tokens.size(); ++i) {
      tokens[i] = options_.random_non_queries ? draws.below(shape().vocab) : 0;
    }
    for (size_t p = 0; p < keys.size(); ++p) {
      const int32_t key = 1 + keys[p], value = static_cast<int32_t>(half) + values[p];
      tokens[2 * p] = key;
      tokens[2 * p + 1] = value;
      const size_t at = asked + 2 * static_cast<size_t>(slots[p]);
      tokens[at] = key;
      targets[at] = value;
    }
  }

 private:
  MqarOptions options_;
};

}  // namespace

std::unique_ptr<Task> make_mqar(SpecOptions& options) {
  const TaskShape defaults{.vocab = 512, .length = 64};
  const int64_t pairs = options.integer("pairs", 4);
  const int64_t length = task_length(options, defaults.length, 4);
  const int64_t vocab = task_vocab(options, defaults.vocab, 4);
  const double power = options.number("power", 0.01, 0.001, 100);
  const bool random_non_queries = options.flag("random_non_queries", false);
  if (length / 4 < pairs) options.refuse("pairs", "at most len / 4");
  if (vocab / 2 - 1 < pairs) options.refuse("pairs", "fewer than vocab / 2");
  return std::make_unique<Mqar>(
      TaskShape{.vocab = vocab, .length = length, .answers = pairs},
      MqarOptions{.pairs = pairs, .random_non_queries = random_non_queries, .power = power});
}

}  // namespace braid
