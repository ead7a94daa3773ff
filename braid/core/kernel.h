#pragma once

#include <type_traits>
#include <utility>

#include "braid/core/build_config.h"
#include "braid/core/context.h"
#include "braid/core/error.h"

namespace braid {

/// The pair of kernels behind an op. A CPU kernel takes (ThreadPool&, dims, pointers...), a CUDA
/// kernel (void* stream, dims, pointers...) with the same dims and pointers. `Cuda` is nullptr
/// while an op has none; a build without CUDA never refers to it.
///
///   using Forward = Kernel<&cpu::rms_norm, &cuda::rms_norm>;
///   Forward::run(ctx, "rms_norm", dims, x.f32(), w.f32(), y.f32());
template <auto Cpu, auto Cuda = nullptr>
struct Kernel {
  template <class... Args>
  static void run(Context& ctx, const char* op, Args&&... args) {
    if (ctx.device().kind == DeviceKind::kCpu) {
      Cpu(ctx.threads(), std::forward<Args>(args)...);
      return;
    }
    if constexpr (kHasCuda && !std::is_null_pointer_v<decltype(Cuda)>) {
      Cuda(ctx.api().stream(), std::forward<Args>(args)...);
    } else {
      fail(ErrorKind::kUnsupported, "{}: there is no kernel for device {}", op,
           to_string(ctx.device()));
    }
  }
};

}  // namespace braid
