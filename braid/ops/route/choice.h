#pragma once

#include <algorithm>
#include <cstdint>

namespace braid {

/// The `count` greatest of the values handed in, in falling order, ties to the one that came first.
/// A value costs one comparison once the list is full and it is not among them.
class Best {
 public:
  /// `values` and `ids` have room for `count`.
  Best(int64_t count, float* values, int32_t* ids) : count_(count), values_(values), ids_(ids) {}

  void offer(float value, int64_t id) {
    if (size_ == count_ && !(value > values_[count_ - 1])) return;
    int64_t at = std::min(size_, count_ - 1);
    for (; at > 0 && value > values_[at - 1]; --at) {
      values_[at] = values_[at - 1];
      ids_[at] = ids_[at - 1];
    }
    values_[at] = value;
    ids_[at] = static_cast<int32_t>(id);
    size_ = std::min(size_ + 1, count_);
  }

 private:
  int64_t count_, size_ = 0;
  float* values_;
  int32_t* ids_;
};

}  // namespace braid
