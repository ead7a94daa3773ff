// Selective copying (Gu and Dao, arXiv:2312.00752, section 3.1; Arjovsky et al., arXiv:1511.06464):
//
//   len - n tokens, n of them data at random places, the others noise | n times "now"
//
// At the j-th "now" the answer is the j-th token of data, which is not shown again. Noise is id 0,
// "now" is id 1, data are ids 2..V-1.

#include <algorithm>

#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

constexpr int32_t kNoise = 0, kNow = 1, kFirstData = 2;

class SelectiveCopy final : public Task {
 public:
  explicit SelectiveCopy(const TaskShape& shape) : Task(shape) {}

  void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const override {
    const int64_t count = shape().answers, context = shape().length - count;
    auto places = draws.distinct(context, count);
    std::ranges::sort(places);
    std::ranges::fill(tokens, kNoise);
    for (size_t j = 0; j < places.size(); ++j) {
      const int32_t datum = kFirstData + draws.below(shape().vocab - kFirstData);
      const size_t now = static_cast<size_t>(context) + j;
      tokens[static_cast<size_t>(places[j])] = datum;
      tokens[now] = kNow;
      targets[now] = datum;
    }
  }
};

}  // namespace

std::unique_ptr<Task> make_selective_copy(SpecOptions& options) {
  const int64_t count = options.integer("tokens", 16);
  const int64_t length = task_length(options, 256, 2);
  const int64_t vocab = task_vocab(options, 18, 3);
  if (length / 2 < count) options.refuse("tokens", "at most len / 2");
  return std::make_unique<SelectiveCopy>(
      TaskShape{.vocab = vocab, .length = length, .answers = count});
}

}  // namespace braid
