// Induction heads (Olsson et al., arXiv:2209.11895; the set-up of Gu and Dao, arXiv:2312.00752,
// section 4.1.2):
//
//   random tokens with one mark somewhere among them, and the mark again at the end
//
// The answer, at the last position, is the token that came after the first mark. The mark is id
// V-1; the others are drawn from 0..V-2.

#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

class Induction final : public Task {
 public:
  explicit Induction(const TaskShape& shape) : Task(shape) {}

  void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const override {
    const auto mark = static_cast<int32_t>(shape().vocab - 1);
    for (int32_t& token : tokens) token = draws.below(mark);
    const auto first = static_cast<size_t>(draws.below(shape().length - 2));
    tokens[first] = mark;
    tokens.back() = mark;
    targets.back() = tokens[first + 1];
  }
};

}  // namespace

std::unique_ptr<Task> make_induction(SpecOptions& options) {
  const int64_t length = task_length(options, 256, 3);
  const int64_t vocab = task_vocab(options, 17, 3);
  return std::make_unique<Induction>(TaskShape{.vocab = vocab, .length = length, .answers = 1});
}

}  // namespace braid
