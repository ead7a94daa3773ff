#include "braid/ops/linear/weight.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "braid/core/file.h"

namespace braid {
namespace {

// Weights live as long as the model and are sized exactly, so they do not come from the arena.
class DeviceStorage final : public Storage {
 public:
  DeviceStorage(std::shared_ptr<DeviceApi> api, size_t bytes)
      : Storage(api->allocate(bytes), bytes, api->device()), api_(std::move(api)) {}
  ~DeviceStorage() override { api_->deallocate(data(), bytes()); }

 private:
  std::shared_ptr<DeviceApi> api_;
};

Tensor allocate(Context& ctx, Shape shape, DType dtype) {
  const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
  return Tensor(std::make_shared<DeviceStorage>(ctx.shared_api(), bytes), 0, shape, dtype,
                shape.count(1));
}

PackDims pack_dims(const Tensor& plain, DType to) {
  return {.to = {.n = plain.rows(), .k = plain.dim(1), .dtype = to},
          .from = plain.dtype(),
          .row = plain.row_stride(),
          .column = 1};
}

PackDims transposed(const PackDims& dims) {
  return {.to = {.n = dims.to.k, .k = dims.to.n, .dtype = dims.to.dtype},
          .from = dims.from,
          .row = dims.column,
          .column = dims.row};
}

void check_part(const Tensor& plain, int64_t cols) {
  check(plain.rank() == 2, "weight: matrix has shape {}, want (N, K)", to_string(plain.shape()));
  check(plain.dim(1) == cols, "weight: a part has {} columns, want {}", plain.dim(1), cols);
  const DType dtype = plain.dtype();
  check(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16,
        ErrorKind::kUnsupported, "weight: matrix holds {}, want f32, bf16 or f16",
        to_string(dtype));
  check(plain.device().kind == DeviceKind::kCpu, "weight: matrix is on {}, want the host",
        to_string(plain.device()));
}

// The rows of all parts as one float32 matrix.
Tensor gather_f32(Context& ctx, const std::vector<Tensor>& parts, Shape shape) {
  Tensor plain = allocate(ctx, shape, DType::kF32);
  float* to = plain.f32();
  for (const Tensor& part : parts) {
    for (int64_t i = 0; i < part.rows(); ++i, to += shape[1]) {
      const auto* from = static_cast<const std::byte*>(part.raw()) +
                         static_cast<size_t>(i * part.row_stride()) * size_of(part.dtype());
      cpu::widen_row(part.dtype(), from, shape[1], to);
    }
    release_mapped_pages(part);
  }
  return plain;
}

// Packs a part that starts at a whole panel straight from where it lies, dropping a mapped file's
// pages behind it.
bool pack_direct(Context& ctx, const Tensor& part, DType dtype, std::byte* to) {
  const PackDims dims = pack_dims(part, dtype);
  std::atomic<bool> finite{true};
  const auto row_bytes =
      std::max<int64_t>(1, dims.to.k * static_cast<int64_t>(size_of(part.dtype())));
  const int64_t grain =
      std::max<int64_t>(1, (int64_t{1} << 20) / (PackedMatrix::kPanel * row_bytes));
  ctx.threads().parallel_for(dims.to.panels(), grain, [&](int64_t begin, int64_t end) {
    if (!cpu::pack_panels(dims, begin, end, part.raw(), to)) finite = false;
    const int64_t last = std::min(part.rows(), end * PackedMatrix::kPanel);
    release_mapped_pages(part.slice_rows(begin * PackedMatrix::kPanel, last));
  });
  release_mapped_pages(part);
  return finite;
}

}  // namespace

struct Weight::Impl {
  PackedMatrix matrix{};
  Tensor packed, packed_transpose, plain;  // bytes, bytes, (N, K)
  bool finite = true;
};

Weight Weight::make(Context& ctx, const Tensor& plain, const WeightOptions& options) {
  return concat_rows(ctx, {plain}, options);
}

Weight Weight::concat_rows(Context& ctx, const std::vector<Tensor>& parts,
                           const WeightOptions& options) {
  check(ctx.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "weight: there is no packed form for device {}", to_string(ctx.device()));
  check(options.packed_dtype == DType::kF32 || options.packed_dtype == DType::kBF16,
        "weight: packed dtype is {}, want f32 or bf16", to_string(options.packed_dtype));
  check(!parts.empty() && parts[0].rank() == 2, "weight: want a matrix (N, K)");
  int64_t rows = 0;
  bool aligned = true;
  for (const Tensor& part : parts) {
    check_part(part, parts[0].dim(1));
    aligned &= rows % PackedMatrix::kPanel == 0;
    rows += part.rows();
  }
  Weight weight;
  weight.impl_ = std::make_shared<Impl>();
  Impl& impl = *weight.impl_;
  impl.matrix = {.n = rows, .k = parts[0].dim(1), .dtype = options.packed_dtype};
  const auto bytes = static_cast<int64_t>(impl.matrix.bytes());
  impl.packed = allocate(ctx, {bytes}, DType::kU8);
  auto* packed = static_cast<std::byte*>(impl.packed.raw());
  if (options.trainable) {
    impl.plain = gather_f32(ctx, parts, {rows, impl.matrix.k});
    if (parts.size() == 1) impl.plain.set_grad_id(parts[0].grad_id());
    const PackedMatrix turned{.n = impl.matrix.k, .k = rows, .dtype = options.packed_dtype};
    impl.packed_transpose = allocate(ctx, {static_cast<int64_t>(turned.bytes())}, DType::kU8);
    weight.repack(ctx);
  } else if (aligned) {
    for (const Tensor& part : parts) {
      impl.finite &= pack_direct(ctx, part, options.packed_dtype, packed);
      packed += static_cast<size_t>(part.rows() / PackedMatrix::kPanel) * impl.matrix.panel_bytes();
    }
  } else {
    impl.finite = pack_direct(ctx, gather_f32(ctx, parts, {rows, impl.matrix.k}),
                              options.packed_dtype, packed);
  }
  return weight;
}

int64_t Weight::rows() const { return impl_->matrix.n; }
int64_t Weight::cols() const { return impl_->matrix.k; }
DType Weight::dtype() const { return impl_->matrix.dtype; }
bool Weight::trainable() const { return impl_->plain.defined(); }
bool Weight::finite() const { return impl_->finite; }
size_t Weight::packed_bytes() const { return impl_->matrix.bytes(); }
const Tensor& Weight::plain() const { return impl_->plain; }
void Weight::set_grad_id(uint64_t id) { impl_->plain.set_grad_id(id); }
PackedMatrix Weight::matrix() const { return impl_->matrix; }
const void* Weight::packed() const { return impl_->packed.raw(); }

void Weight::repack(Context& ctx) {
  check(trainable(), "weight: repack of a weight that keeps no plain matrix");
  const PackDims dims = pack_dims(impl_->plain, dtype());
  impl_->finite = cpu::pack(ctx.threads(), dims, impl_->plain.raw(), impl_->packed.raw());
  cpu::pack(ctx.threads(), transposed(dims), impl_->plain.raw(), impl_->packed_transpose.raw());
}

Tensor Weight::packed_transpose(Context& ctx) const {
  if (trainable()) return impl_->packed_transpose;
  const Tensor plain = to_plain(ctx, DType::kF32);
  const PackDims dims = transposed(pack_dims(plain, dtype()));
  Tensor packed = ctx.empty({static_cast<int64_t>(dims.to.bytes())}, DType::kU8);
  cpu::pack(ctx.threads(), dims, plain.raw(), packed.raw());
  return packed;
}

void Weight::row(int64_t n, float* out) const {
  if (trainable()) {
    std::copy_n(impl_->plain.f32() + n * cols(), cols(), out);
  } else {
    cpu::unpack_row(impl_->matrix, packed(), n, out);
  }
}

Tensor Weight::to_plain(Context& ctx, DType dtype) const {
  check(dtype == DType::kF32 || dtype == DType::kBF16, "weight: to_plain of {}, want f32 or bf16",
        to_string(dtype));
  Tensor plain = ctx.empty({rows(), cols()}, dtype);
  const Tensor line = ctx.empty({ctx.threads().size(), cols()});
  ctx.threads().parallel_for(rows(), 32, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t n = begin; n < end; ++n) {
      if (dtype == DType::kF32) {
        row(n, plain.f32() + n * cols());
        continue;
      }
      float* values = line.f32() + worker * cols();
      row(n, values);
      BF16* to = plain.data<BF16>() + n * cols();
      for (int64_t p = 0; p < cols(); ++p) to[p] = to_bf16(values[p]);
    }
  });
  return plain;
}

}  // namespace braid
