#pragma once

// For sources compiled with CUDA alone. A .cu file includes no header that reaches {fmt}, which
// nvcc does not compile as C++20: what needs it (errors, tensors) stays in .cpp files.

#include <cuda_runtime.h>

namespace braid::cuda {

/// Throws Error(kDevice) with the text of the call and CUDA's own words for what went wrong.
void check(cudaError_t status, const char* call);
/// As `check`, for the errors of other libraries: `what` went wrong in `call`.
[[noreturn]] void fail(const char* what, const char* call);

}  // namespace braid::cuda

/// Runs a call of the CUDA runtime, or a kernel launch followed by cudaGetLastError:
///   BRAID_CUDA_CHECK(cudaStreamSynchronize(stream));
///   BRAID_CUDA_CHECK(kernel<<<blocks, threads, 0, stream>>>(x, y), cudaGetLastError());
#define BRAID_CUDA_CHECK(...) ::braid::cuda::check((__VA_ARGS__), #__VA_ARGS__)
