#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace braid {

/// Up to six extents, outermost first. A value; no allocation.
class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  /// Negative indices count from the back.
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i < 0 ? i + rank_ : i)]; }
  void set(int i, int64_t extent) { dims_[static_cast<size_t>(i < 0 ? i + rank_ : i)] = extent; }

  /// Product of the extents from `first` on; 1 for none.
  int64_t count(int first = 0) const;
  /// As `count`, but throws Error(kResource) where the product would not fit 62 bits.
  int64_t checked_count() const;

  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// "(2, 3)".
std::string to_string(const Shape& shape);

}  // namespace braid
