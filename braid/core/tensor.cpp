#include "braid/core/tensor.h"

namespace braid {

Tensor::Tensor(std::shared_ptr<Storage> storage, size_t byte_offset, Shape shape, DType dtype,
               int64_t row_stride)
    : storage_(std::move(storage)),
      byte_offset_(byte_offset),
      shape_(shape),
      dtype_(dtype),
      row_stride_(row_stride) {
  check(row_stride_ >= row_count(), "tensor: row stride {} is less than a row of {}", row_stride_,
        row_count());
}

void* Tensor::raw() const {
  // A tensor without elements may have no memory, and nothing may be added to a null pointer.
  auto* data = storage_ ? static_cast<std::byte*>(storage_->data()) : nullptr;
  return data == nullptr ? nullptr : data + byte_offset_;
}

Tensor Tensor::reshape(Shape shape) const {
  check(shape.count() == count(), "reshape: {} to {}", to_string(shape_), to_string(shape));
  const bool keeps_rows = shape.rank() > 0 && rank() > 0 && shape[0] == shape_[0];
  check(keeps_rows || contiguous(), "reshape: {} has strided rows and {} changes them",
        to_string(shape_), to_string(shape));
  Tensor view = *this;
  view.shape_ = shape;
  view.row_stride_ = keeps_rows ? row_stride_ : view.row_count();
  return view;
}

Tensor Tensor::slice_rows(int64_t begin, int64_t end) const {
  check(rank() > 0 && 0 <= begin && begin <= end && end <= rows(),
        "slice_rows: [{}, {}) of shape {}", begin, end, to_string(shape_));
  Tensor view = *this;
  view.shape_.set(0, end - begin);
  view.byte_offset_ += static_cast<size_t>(begin * row_stride_) * size_of(dtype_);
  view.grad_id_ = 0;
  return view;
}

Tensor Tensor::slice_columns(int64_t begin, int64_t end) const {
  check(rank() == 2 && 0 <= begin && begin <= end && end <= dim(1),
        "slice_columns: [{}, {}) of shape {}", begin, end, to_string(shape_));
  Tensor view = *this;
  view.shape_.set(1, end - begin);
  view.byte_offset_ += static_cast<size_t>(begin) * size_of(dtype_);
  view.grad_id_ = 0;
  return view;
}

}  // namespace braid
