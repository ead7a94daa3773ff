// Needles in noise, after the retrieval tests of RULER (Hsieh et al., arXiv:2404.06654):
//
//   noise ... key value ... noise ... key value ... noise | key
//
// Several needles (a key and its value) lie among noise; the answer, at the last position, is the
// value of the key there. With distance=d that key's needle lies exactly d tokens before the end,
// otherwise anywhere. Noise is ids 0..V/2-1, keys (all different) the lower and values the upper
// half of the rest.

#include <vector>

#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

class Needle final : public Task {
 public:
  Needle(const TaskShape& shape, int64_t needles, int64_t distance)
      : Task(shape), needles_(needles), distance_(distance) {}

  void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const override {
    const int64_t noise = shape().vocab / 2, keys = (shape().vocab - noise) / 2;
    const int64_t values = shape().vocab - noise - keys;
    for (int32_t& token : tokens) token = draws.below(noise);
    const std::vector<int64_t> places = place(draws);
    const auto of = draws.distinct(keys, needles_);
    for (size_t n = 0; n < places.size(); ++n) {
      const auto at = static_cast<size_t>(places[n]);
      tokens[at] = static_cast<int32_t>(noise) + of[n];
      tokens[at + 1] = static_cast<int32_t>(noise + keys) + draws.below(values);
    }
    const auto asked = static_cast<size_t>(places[0]);
    tokens.back() = tokens[asked];
    targets.back() = tokens[asked + 1];
  }

 private:
  int64_t needles_, distance_;

  // Where the needles begin, the asked one first; none overlaps another or the last position.
  std::vector<int64_t> place(Draws& draws) const {
    const int64_t last = shape().length - 1;
    std::vector<bool> taken(static_cast<size_t>(last));
    std::vector<int64_t> places;
    while (static_cast<int64_t>(places.size()) < needles_) {
      const bool given = places.empty() && distance_ > 0;
      const int64_t at = given ? last - distance_ : draws.below(last - 1);
      const auto i = static_cast<size_t>(at);
      if (taken[i] || taken[i + 1]) continue;  // at most 3 in 4 places are
      taken[i] = taken[i + 1] = true;
      places.push_back(at);
    }
    return places;
  }
};

}  // namespace

std::unique_ptr<Task> make_needle(SpecOptions& options) {
  const int64_t needles = options.integer("needles", 1);
  const int64_t length = task_length(options, 256, 4);
  const int64_t vocab = task_vocab(options, 64, 4);
  const int64_t distance = options.integer("distance", 0, 0);
  if (length / 4 < needles) options.refuse("needles", "at most len / 4");
  if ((vocab - vocab / 2) / 2 < needles) options.refuse("needles", "at most vocab / 4");
  if (distance == 1 || distance >= length) options.refuse("distance", "0, or from 2 to len - 1");
  return std::make_unique<Needle>(TaskShape{.vocab = vocab, .length = length, .answers = 1},
                                  needles, distance);
}

}  // namespace braid
