#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "braid/core/device.h"
#include "braid/core/dtype.h"
#include "braid/core/error.h"
#include "braid/core/shape.h"

namespace braid {

/// A reference-counted run of bytes. The owner (arena block, mapped file, host vector) decides what
/// `release` does when the last Tensor goes.
class Storage {
 public:
  Storage(void* data, size_t bytes, Device device) : data_(data), bytes_(bytes), device_(device) {}
  virtual ~Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_;
  size_t bytes_;
  Device device_;
};

/// A value: shape, dtype, device, shared storage. Row-major; the last dimensions are contiguous and
/// only the first may be strided (`row_stride`), so that a column slice of a projection is a view.
/// A default-constructed Tensor is empty (`!defined()`) and stands for "absent".
///
/// Thread safety: as a shared_ptr. Copies share the data.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Storage> storage, size_t byte_offset, Shape shape, DType dtype,
         int64_t row_stride);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int rank() const { return shape_.rank(); }
  int64_t count() const { return shape_.count(); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : Device{}; }

  /// Extent of the first dimension; 1 for a scalar.
  int64_t rows() const { return rank() == 0 ? 1 : shape_[0]; }
  /// Elements of one row.
  int64_t row_count() const { return rank() == 0 ? 1 : shape_.count(1); }
  /// Distance between rows in elements; >= row_count().
  int64_t row_stride() const { return row_stride_; }
  bool contiguous() const { return row_stride_ == row_count() || rows() <= 1; }

  void* raw() const;
  size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype_); }

  /// The typed pointer; the dtype must match.
  template <class T>
  T* data() const {
    check(!defined() || dtype_ == DTypeOf<T>::value, "tensor: holds {}, read as {}",
          to_string(dtype_), to_string(DTypeOf<T>::value));
    return static_cast<T*>(raw());
  }
  float* f32() const { return data<float>(); }

  /// Views. `reshape` needs a contiguous tensor, or one that keeps the first dimension.
  Tensor reshape(Shape shape) const;
  Tensor slice_rows(int64_t begin, int64_t end) const;
  /// Columns [begin, end) of a (rows, d) tensor.
  Tensor slice_columns(int64_t begin, int64_t end) const;

  /// Identity for gradients: 0 is "not tracked". See Tape.
  uint64_t grad_id() const { return grad_id_; }
  void set_grad_id(uint64_t id) { grad_id_ = id; }

  const std::shared_ptr<Storage>& storage() const { return storage_; }

 private:
  std::shared_ptr<Storage> storage_;
  size_t byte_offset_ = 0;
  Shape shape_;
  DType dtype_ = DType::kF32;
  int64_t row_stride_ = 0;
  uint64_t grad_id_ = 0;
};

/// A host tensor that owns a vector; for inputs, tests and small tables.
template <class T>
Tensor host_tensor(std::vector<T> values, Shape shape);

template <class T>
class VectorStorage final : public Storage {
 public:
  explicit VectorStorage(std::vector<T> values)
      : VectorStorage(std::make_unique<std::vector<T>>(std::move(values))) {}

 private:
  explicit VectorStorage(std::unique_ptr<std::vector<T>> values)
      : Storage(values->data(), values->size() * sizeof(T), Device{}), values_(std::move(values)) {}
  std::unique_ptr<std::vector<T>> values_;
};

template <class T>
Tensor host_tensor(std::vector<T> values, Shape shape) {
  check(static_cast<int64_t>(values.size()) == shape.count(),
        "host_tensor: {} values, shape {} wants {}", values.size(), to_string(shape),
        shape.count());
  const int64_t row = shape.rank() == 0 ? 1 : shape.count(1);
  return Tensor(std::make_shared<VectorStorage<T>>(std::move(values)), 0, shape, DTypeOf<T>::value,
                row);
}

}  // namespace braid
