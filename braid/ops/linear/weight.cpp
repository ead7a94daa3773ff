#include "braid/ops/linear/weight.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "braid/core/device_storage.h"
#include "braid/core/file.h"
#include "braid/core/kernel.h"

namespace braid {
namespace {

// Weights live as long as the model and are sized exactly, so they do not come from the arena.
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

// The rows of all parts as one float32 matrix on the host.
void gather_f32(const std::vector<Tensor>& parts, int64_t cols, float* to) {
  for (const Tensor& part : parts) {
    for (int64_t i = 0; i < part.rows(); ++i, to += cols) {
      const auto* from = static_cast<const std::byte*>(part.raw()) +
                         static_cast<size_t>(i * part.row_stride()) * size_of(part.dtype());
      cpu::widen_row(part.dtype(), from, cols, to);
    }
    release_mapped_pages(part);
  }
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

  void upload(Context& ctx, const std::vector<Tensor>& parts, bool trainable);
  void keep_transpose(Context& ctx, const Weight& self);
  Tensor download(Context& ctx) const;
};

// A plain matrix on the device. Float32 is there once, whether trained or not.
void Weight::Impl::upload(Context& ctx, const std::vector<Tensor>& parts, bool trainable) {
  const Shape shape{matrix.n, matrix.k};
  matrix.row = matrix.k;
  matrix.column = 1;
  std::vector<float> values(static_cast<size_t>(shape.count()));
  gather_f32(parts, matrix.k, values.data());
  finite = std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  const Tensor host = host_tensor(std::move(values), shape);
  if (trainable || matrix.dtype == DType::kF32) {
    packed = allocate(ctx, shape, DType::kF32);
    ctx.api().copy_from_host(packed.raw(), host.raw(), host.bytes());
  }
  if (trainable) {
    plain = packed;
    if (parts.size() == 1) plain.set_grad_id(parts[0].grad_id());
  }
  if (matrix.dtype == DType::kF32) return;
  std::vector<BF16> rounded(static_cast<size_t>(shape.count()));
  std::transform(host.f32(), host.f32() + host.count(), rounded.begin(),
                 [](float v) { return to_bf16(v); });
  packed = allocate(ctx, shape, DType::kBF16);
  ctx.api().copy_from_host(packed.raw(), rounded.data(), packed.bytes());
}

void Weight::Impl::keep_transpose(Context& ctx, const Weight& self) {
  const Tensor once = self.packed_transpose(ctx);  // of the call: activation memory
  packed_transpose = allocate(ctx, once.shape(), DType::kU8);
  std::memcpy(packed_transpose.raw(), once.raw(), once.bytes());
}

// The plain matrix of an uploaded weight as float32 on the host.
Tensor Weight::Impl::download(Context& ctx) const {
  const Tensor host = ctx.to_host(plain.defined() ? plain : packed);
  if (host.dtype() == DType::kF32) return host;
  std::vector<float> values(static_cast<size_t>(host.count()));
  std::transform(host.data<BF16>(), host.data<BF16>() + host.count(), values.begin(),
                 [](BF16 v) { return to_float(v); });
  return host_tensor(std::move(values), host.shape());
}

Weight Weight::make(Context& ctx, const Tensor& plain, const WeightOptions& options) {
  return concat_rows(ctx, {plain}, options);
}

Weight Weight::concat_rows(Context& ctx, const std::vector<Tensor>& parts,
                           const WeightOptions& options) {
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
  if (ctx.device().kind != DeviceKind::kCpu) {
    impl.upload(ctx, parts, options.trainable);
    return weight;
  }
  const auto bytes = static_cast<int64_t>(impl.matrix.bytes());
  impl.packed = allocate(ctx, {bytes}, DType::kU8);
  auto* packed = static_cast<std::byte*>(impl.packed.raw());
  if (options.trainable) {
    impl.plain = allocate(ctx, {rows, impl.matrix.k}, DType::kF32);
    gather_f32(parts, impl.matrix.k, impl.plain.f32());
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
    const Tensor plain = allocate(ctx, {rows, impl.matrix.k}, DType::kF32);
    gather_f32(parts, impl.matrix.k, plain.f32());
    impl.finite = pack_direct(ctx, plain, options.packed_dtype, packed);
  }
  if (options.both_ways && !options.trainable) impl.keep_transpose(ctx, weight);
  return weight;
}

int64_t Weight::rows() const { return impl_->matrix.n; }
int64_t Weight::cols() const { return impl_->matrix.k; }
DType Weight::dtype() const { return impl_->matrix.dtype; }
bool Weight::trainable() const { return impl_->plain.defined(); }
bool Weight::finite() const { return impl_->finite; }
size_t Weight::packed_bytes() const { return impl_->packed.bytes(); }
const Tensor& Weight::plain() const { return impl_->plain; }
void Weight::set_grad_id(uint64_t id) { impl_->plain.set_grad_id(id); }
PackedMatrix Weight::matrix() const { return impl_->matrix; }
const void* Weight::packed() const { return impl_->packed.raw(); }

PackedMatrix Weight::transposed_matrix() const {
  const PackedMatrix& from = impl_->matrix;
  return {.n = from.k, .k = from.n, .dtype = from.dtype, .row = from.column, .column = from.row};
}

void Weight::repack(Context& ctx) {
  check(trainable(), "weight: repack of a weight that keeps no plain matrix");
  PackDims dims = pack_dims(impl_->plain, dtype());
  if (ctx.device().kind != DeviceKind::kCpu) {
    dims.to = impl_->matrix;
    if (dtype() == DType::kBF16) {
      Kernel<&cpu::pack, &cuda::pack>::run(ctx, "weight", dims, impl_->plain.raw(),
                                           impl_->packed.raw());
    }
    return;
  }
  impl_->finite = cpu::pack(ctx.threads(), dims, impl_->plain.raw(), impl_->packed.raw());
  cpu::pack(ctx.threads(), transposed(dims), impl_->plain.raw(), impl_->packed_transpose.raw());
}

Tensor Weight::packed_transpose(Context& ctx) const {
  if (ctx.device().kind != DeviceKind::kCpu) return impl_->packed;
  if (impl_->packed_transpose.defined()) return impl_->packed_transpose;
  const Tensor plain = to_plain(ctx, DType::kF32);
  const PackDims dims = transposed(pack_dims(plain, dtype()));
  Tensor packed = ctx.empty({static_cast<int64_t>(dims.to.bytes())}, DType::kU8);
  cpu::pack(ctx.threads(), dims, plain.raw(), packed.raw());
  return packed;
}

void Weight::row(int64_t n, float* out) const {
  check(impl_->packed.device().kind == DeviceKind::kCpu, ErrorKind::kUnsupported,
        "weight: rows of a weight on {} cannot be read singly", to_string(impl_->packed.device()));
  if (trainable()) {
    std::copy_n(impl_->plain.f32() + n * cols(), cols(), out);
  } else {
    cpu::unpack_row(impl_->matrix, packed(), n, out);
  }
}

Tensor Weight::to_plain(Context& ctx, DType dtype) const {
  check(dtype == DType::kF32 || dtype == DType::kBF16, "weight: to_plain of {}, want f32 or bf16",
        to_string(dtype));
  if (ctx.device().kind != DeviceKind::kCpu) {
    const Tensor host = impl_->download(ctx);
    if (dtype == DType::kF32) return host;
    std::vector<BF16> rounded(static_cast<size_t>(host.count()));
    std::transform(host.f32(), host.f32() + host.count(), rounded.begin(),
                   [](float v) { return to_bf16(v); });
    return host_tensor(std::move(rounded), host.shape());
  }
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
