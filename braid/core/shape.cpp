#include "braid/core/shape.h"

#include <algorithm>

#include "braid/core/error.h"

namespace braid {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  check(dims.size() <= kMaxRank, "shape: rank {}, want at most {}", dims.size(), kMaxRank);
  std::copy(dims.begin(), dims.end(), dims_.begin());
  for (const int64_t extent : dims) check(extent >= 0, "shape: extent {}, want >= 0", extent);
}

int64_t Shape::count(int first) const {
  int64_t n = 1;
  for (int i = first; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
  return n;
}

int64_t Shape::checked_count() const {
  int64_t n = 1;
  for (const int64_t extent : dims()) {
    check(extent == 0 || n <= (int64_t{1} << 62) / extent, ErrorKind::kResource,
          "shape {}: more elements than can be addressed", to_string(*this));
    n *= extent;
  }
  return n;
}

bool operator==(const Shape& a, const Shape& b) { return std::ranges::equal(a.dims(), b.dims()); }

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + ")";
}

}  // namespace braid
