// State tracking: the word problem of a finite group (Liu et al., arXiv:2210.10749; Merrill et al.,
// arXiv:2404.08819).
//
//   x_1 x_2 ... x_L       answer at position t: x_1 x_2 ... x_t, the product so far
//
// `parity` is Z_2. `modular` has Z_K (sums modulo K) and the permutations S_3, S_4, S_5: element p
// is the p-th permutation in lexicographic order, 0 the identity, and (a b)(i) = a(b(i)). With
// answers=last only the whole product counts.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

constexpr int64_t kMaxModulus = 1024;

/// table[a * order + b] = a b.
struct Group {
  int64_t order = 0;
  std::vector<int32_t> table;

  int32_t product(int32_t a, int32_t b) const { return table[static_cast<size_t>(a * order + b)]; }
};

Group cyclic(int64_t modulus) {
  Group group{.order = modulus};
  for (int64_t a = 0; a < modulus; ++a) {
    for (int64_t b = 0; b < modulus; ++b) {
      group.table.push_back(static_cast<int32_t>((a + b) % modulus));
    }
  }
  return group;
}

Group symmetric(size_t points) {
  std::vector<std::vector<size_t>> elements;
  std::vector<size_t> permutation(points);
  std::iota(permutation.begin(), permutation.end(), size_t{0});
  do {
    elements.push_back(permutation);
  } while (std::next_permutation(permutation.begin(), permutation.end()));
  Group group{.order = static_cast<int64_t>(elements.size())};
  for (const auto& a : elements) {
    for (const auto& b : elements) {
      for (size_t i = 0; i < points; ++i) permutation[i] = a[b[i]];
      const auto at = std::ranges::lower_bound(elements, permutation);
      group.table.push_back(static_cast<int32_t>(at - elements.begin()));
    }
  }
  return group;
}

// "z7", "s5"; order 0 for what is none.
Group parse_group(const std::string& name) {
  int64_t n = 0;
  if (name.size() < 2 || !parse_integer(std::string_view(name).substr(1), &n)) return {};
  if (name[0] == 'z' && 2 <= n && n <= kMaxModulus) return cyclic(n);
  if (name[0] == 's' && 3 <= n && n <= 5) return symmetric(static_cast<size_t>(n));
  return {};
}

class GroupTask final : public Task {
 public:
  GroupTask(Group group, int64_t length, bool last)
      : Task({.vocab = group.order, .length = length, .answers = last ? 1 : length}),
        group_(std::move(group)) {}

  void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const override {
    int32_t product = 0;
    for (size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = draws.below(group_.order);
      product = group_.product(product, tokens[t]);
      if (shape().answers > 1) targets[t] = product;
    }
    targets.back() = product;
  }

 private:
  Group group_;
};

std::unique_ptr<Task> make_group_task(SpecOptions& options, Group group) {
  const int64_t length = task_length(options, 64, 1);
  const bool last = options.text("answers", "all", {"all", "last"}) == "last";
  return std::make_unique<GroupTask>(std::move(group), length, last);
}

}  // namespace

std::unique_ptr<Task> make_parity(SpecOptions& options) {
  return make_group_task(options, cyclic(2));
}

std::unique_ptr<Task> make_modular(SpecOptions& options) {
  Group group = parse_group(options.text("group", "z5"));
  if (group.order == 0) {
    options.refuse("group", fmt::format("z2 to z{}, s3, s4 or s5", kMaxModulus));
  }
  return make_group_task(options, std::move(group));
}

}  // namespace braid
