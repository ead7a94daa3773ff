#include "braid/dist/transport.h"

#include <cstring>

#include "braid/core/error.h"

namespace braid {
namespace {

template <class T>
void reduce_sum(Transport& transport, std::span<T> values) {
  const ReceivedParts all = transport.all_gather(bytes_of(std::span<const T>(values)));
  for (int r = 0; r < transport.size(); ++r) {
    const ByteView part = all.from(r);
    check(part.size() == values.size_bytes(), "all_reduce: rank {} gives {} bytes, want {}", r,
          part.size(), values.size_bytes());
    for (size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, part.data() + i * sizeof(T), sizeof(T));
      values[i] = r == 0 ? value : values[i] + value;
    }
  }
}

}  // namespace

ReceivedParts Transport::all_gather(ByteView mine) {
  const std::vector<ByteView> parts(static_cast<size_t>(size()), mine);
  return all_to_all(parts);
}

void Transport::all_reduce_sum(std::span<int64_t> values) { reduce_sum(*this, values); }
void Transport::all_reduce_sum(std::span<float> values) { reduce_sum(*this, values); }

void Transport::barrier() { all_gather({}); }

}  // namespace braid
