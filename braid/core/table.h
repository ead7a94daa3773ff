#pragma once

#include <span>
#include <type_traits>

#include "braid/core/context.h"

namespace braid {

/// A small host array (offsets, ids, pointers) where a context's kernels can read it: in place on
/// the CPU, so `values` must outlive the Table there; elsewhere a copy, good for launches made
/// while the Table lives.
template <class T>
class Table {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Table(Context& ctx, std::span<const T> values) : data_(values.data()) {
    if (ctx.device().kind == DeviceKind::kCpu || values.empty()) return;
    copy_ = ctx.empty({static_cast<int64_t>(values.size_bytes())}, DType::kU8);
    ctx.api().copy_from_host(copy_.raw(), values.data(), values.size_bytes());
    data_ = static_cast<const T*>(copy_.raw());
  }

  const T* data() const { return data_; }

 private:
  Tensor copy_;
  const T* data_;
};

}  // namespace braid
