#include "braid/core/context.h"

#include <cstring>

namespace braid {
namespace {

Tensor copy_rows(const Tensor& x, Tensor y,
                 const std::function<void(void*, const void*, size_t)>& copy) {
  const size_t row = static_cast<size_t>(x.row_count()) * size_of(x.dtype());
  if (x.contiguous()) {
    copy(y.raw(), x.raw(), x.bytes());
    return y;
  }
  const size_t stride = static_cast<size_t>(x.row_stride()) * size_of(x.dtype());
  for (int64_t i = 0; i < x.rows(); ++i) {
    copy(static_cast<std::byte*>(y.raw()) + static_cast<size_t>(i) * row,
         static_cast<std::byte*>(x.raw()) + static_cast<size_t>(i) * stride, row);
  }
  return y;
}

}  // namespace

Context::Context(const ContextOptions& options) {
  auto api = make_device(options.device);
  shared_ = std::shared_ptr<Shared>(
      new Shared{api, Arena(api), ThreadPool(options.threads), Rng(options.seed)});
  shared_->arena.set_poison(options.poison);
}

Context Context::with_tape(Tape* tape) const {
  Context copy = *this;
  copy.tape_ = tape;
  return copy;
}

Context Context::with_form(Form form) const {
  Context copy = *this;
  copy.form_ = form;
  return copy;
}

Tensor Context::empty(Shape shape, DType dtype) const {
  const size_t bytes = static_cast<size_t>(shape.checked_count()) * size_of(dtype);
  return Tensor(shared_->arena.allocate(bytes), 0, shape, dtype,
                shape.rank() == 0 ? 1 : shape.count(1));
}

Tensor Context::zeros(Shape shape, DType dtype) const {
  Tensor x = empty(shape, dtype);
  api().fill_bytes(x.raw(), 0, x.bytes());
  return x;
}

Tensor Context::to_device(const Tensor& x) const {
  check(x.device().kind == DeviceKind::kCpu, "to_device: the tensor is on {}, want the host",
        to_string(x.device()));
  return copy_rows(x, empty(x.shape(), x.dtype()), [this](void* to, const void* from, size_t n) {
    api().copy_from_host(to, from, n);
  });
}

Tensor Context::to_host(const Tensor& x) const {
  Tensor y = host_tensor(std::vector<uint8_t>(x.bytes()), {static_cast<int64_t>(x.bytes())});
  y = Tensor(y.storage(), 0, x.shape(), x.dtype(), x.row_count());
  return copy_rows(
      x, y, [this](void* to, const void* from, size_t n) { api().copy_to_host(to, from, n); });
}

}  // namespace braid
