// Products of bfloat16 by cuBLASLt, those of float32 by sgemm.cu. The library's matrices are
// column-major, so that it computes the transpose of what we ask for: c^T (n, m) = b (n, k)
// a^T (k, m), each of ours being the transpose of one of its.

#include <cublasLt.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>

#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/linear/kernels.h"
#include "braid/ops/linear/sgemm.h"

namespace braid::cuda {

static void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(cublasLtGetStatusString(status), call);
}

namespace {

constexpr int kThreads = 256;
// Rows that an algorithm is chosen for: it then serves every batch, so that a row's sums are cut in
// the same way in all of them.
constexpr int64_t kChosenRows = 1024;
// Choices that are looked at for one that serves every number of rows.
constexpr int kChoices = 32;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

__device__ __forceinline__ void convert(float from, float& to) { to = from; }
__device__ __forceinline__ void convert(float from, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(from);
}

template <class To>
__global__ void convert_kernel(int64_t lines, int64_t length, const float* __restrict__ from,
                               int64_t from_stride, To* __restrict__ to, int64_t to_stride) {
  const int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= length) return;
  for (int64_t i = blockIdx.y; i < lines; i += gridDim.y) {
    convert(from[i * from_stride + j], to[i * to_stride + j]);
  }
}

template <class To>
void convert_lines(cudaStream_t stream, int64_t lines, int64_t length, const float* from,
                   int64_t from_stride, To* to, int64_t to_stride) {
  if (lines == 0 || length == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(length, kThreads)),
                  static_cast<unsigned>(std::min<int64_t>(lines, 65535)));
  BRAID_CUDA_CHECK(convert_kernel<<<grid, kThreads, 0, stream>>>(lines, length, from, from_stride,
                                                                 to, to_stride),
                   cudaGetLastError());
}

// y[j] <- sum_i x[i, j].
__global__ void column_sum_kernel(int64_t rows, int64_t columns, int64_t x_row,
                                  const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float scratch[kSumLanes][32];
  const int64_t j = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const bool inside = j < columns;
  const float sum =
      column_sum(inside ? rows : 0, scratch, [=](int64_t i) { return x[i * x_row + j]; });
  if (inside && threadIdx.y == 0) y[j] = sum;
}

/// c (m, n) <- start, whose rows are start_row apart; zero where start is null.
__global__ void fill_kernel(LinearDims dims, const float* __restrict__ start,
                            float* __restrict__ c) {
  const int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= dims.b.n) return;
  for (int64_t i = blockIdx.y; i < dims.m; i += gridDim.y) {
    c[i * dims.c_row + j] = start == nullptr ? 0.0f : start[i * dims.start_row + j];
  }
}

void fill(cudaStream_t stream, const LinearDims& dims, const float* start, float* c) {
  const dim3 grid(static_cast<unsigned>(ceil_div(dims.b.n, kThreads)),
                  static_cast<unsigned>(std::min<int64_t>(dims.m, 65535)));
  BRAID_CUDA_CHECK(fill_kernel<<<grid, kThreads, 0, stream>>>(dims, start, c), cudaGetLastError());
}

// A matrix of ours (rows, columns) as the library sees it.
struct Operand {
  const void* data;
  int64_t rows, columns, stride;  // of the column-major view: `columns` runs of `rows` elements
  bool turned;                    // our rows are contiguous: the view is our transpose

  int alignment(size_t element) const {
    const auto bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride) * element;
    return static_cast<int>(std::min<uintptr_t>(16, bits & (~bits + 1)));
  }
};

Operand operand(const void* data, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  if (column == 1 && (row >= columns || rows == 1)) {
    return {data, columns, rows, std::max(row, columns), true};
  }
  return {data, rows, columns, std::max(column, rows), false};
}

// The product in the library's terms: d (n, m) <- a b + beta c.
struct Product {
  Operand a, b;  // bfloat16, of n and of m
  Operand c, d;  // float32
  float beta;

  using Key = std::array<int64_t, 11>;
  Key key(int64_t m) const {
    return {d.rows,          m,
            inner(),         a.turned,
            b.turned,        beta != 0,
            a.alignment(2),  b.alignment(2),
            c.alignment(4),  d.alignment(4),
            c.data == d.data};
  }
  int64_t inner() const { return a.turned ? a.rows : a.columns; }
};

// The library's descriptions of a product of m rows.
struct Description {
  cublasLtMatmulDescOpaque_t matmul;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;

  Description(const Product& p, int64_t m) {
    BRAID_CUDA_CHECK(cublasLtMatmulDescInit(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    // For the library the views are what is given; they are turned back to (n, k) and (k, m).
    const cublasOperation_t turn_a = p.a.turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t turn_b = p.b.turned ? CUBLAS_OP_N : CUBLAS_OP_T;
    BRAID_CUDA_CHECK(cublasLtMatmulDescSetAttribute(&matmul, CUBLASLT_MATMUL_DESC_TRANSA, &turn_a,
                                                    sizeof(turn_a)));
    BRAID_CUDA_CHECK(cublasLtMatmulDescSetAttribute(&matmul, CUBLASLT_MATMUL_DESC_TRANSB, &turn_b,
                                                    sizeof(turn_b)));
    layout(a, CUDA_R_16BF, p.a.rows, p.a.columns, p.a.stride);
    layout(b, CUDA_R_16BF, p.b.turned ? p.b.rows : m, p.b.turned ? m : p.b.columns,
           p.b.turned ? p.b.stride : std::max(p.b.stride, m));
    layout(c, CUDA_R_32F, p.c.rows, m, p.c.stride);
    layout(d, CUDA_R_32F, p.d.rows, m, p.d.stride);
  }

 private:
  static void layout(cublasLtMatrixLayoutOpaque_t& to, cudaDataType_t type, int64_t rows,
                     int64_t columns, int64_t stride) {
    BRAID_CUDA_CHECK(cublasLtMatrixLayoutInit(&to, type, static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(columns), stride));
  }
};

class Library {
 public:
  explicit Library(cudaStream_t stream) : stream_(stream) {
    BRAID_CUDA_CHECK(cublasLtCreate(&handle_));
    BRAID_CUDA_CHECK(cudaMalloc(&workspace_, kWorkspaceBytes));
  }
  ~Library() {
    cudaFree(workspace_);
    cublasLtDestroy(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  static Library& of(Queue& queue) {
    if (queue.matmul == nullptr) queue.matmul = std::make_shared<Library>(queue.stream);
    return *static_cast<Library*>(queue.matmul.get());
  }

  void run(const Product& p, int64_t m) {
    // The rows of a weight's gradient are its outputs, not a batch: their number never changes.
    const cublasLtMatmulAlgo_t& chosen = algorithm(p, p.b.turned ? kChosenRows : m);
    Description description(p, m);
    const float alpha = 1;
    check(cublasLtMatmul(handle_, &description.matmul, &alpha, p.a.data, &description.a, p.b.data,
                         &description.b, &p.beta, p.c.data, &description.c,
                         const_cast<void*>(p.d.data), &description.d, &chosen, workspace_,
                         kWorkspaceBytes, stream_),
          "cublasLtMatmul");
  }

 private:
  const cublasLtMatmulAlgo_t& algorithm(const Product& p, int64_t m) {
    const auto [found, fresh] = algorithms_.try_emplace(p.key(m));
    if (fresh) {
      try {
        found->second = choose(p, m);
      } catch (...) {
        algorithms_.erase(found);
        throw;
      }
    }
    return found->second;
  }

  // The library's first choice among those that add up an element in one piece and, for a batch,
  // serve every number of rows.
  cublasLtMatmulAlgo_t choose(const Product& p, int64_t m) {
    cublasLtMatmulPreferenceOpaque_t preference;
    BRAID_CUDA_CHECK(cublasLtMatmulPreferenceInit(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      BRAID_CUDA_CHECK(
          cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(p.a.alignment(2)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(p.b.alignment(2)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(p.c.alignment(4)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(p.d.alignment(4)));
    Description description(p, m);
    std::array<cublasLtMatmulHeuristicResult_t, kChoices> choices{};
    int count = 0;
    BRAID_CUDA_CHECK(cublasLtMatmulAlgoGetHeuristic(handle_, &description.matmul, &description.a,
                                                    &description.b, &description.c, &description.d,
                                                    &preference, kChoices, choices.data(), &count));
    for (int i = 0; i < count; ++i) {
      const auto& choice = choices[static_cast<size_t>(i)];
      if (choice.state == CUBLAS_STATUS_SUCCESS && in_one_piece(choice.algo) &&
          (!p.b.turned || serves_every_batch(p, choice.algo))) {
        return choice.algo;
      }
    }
    fail("no algorithm gives a row the same bits in every batch", "cublasLtMatmulAlgoGetHeuristic");
  }

  static bool in_one_piece(const cublasLtMatmulAlgo_t& algo) {
    int32_t pieces = 0;
    size_t written = 0;
    BRAID_CUDA_CHECK(cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                          &pieces, sizeof(pieces), &written));
    return pieces == 0 || pieces == 1;
  }

  bool serves_every_batch(const Product& p, const cublasLtMatmulAlgo_t& algo) {
    for (const int64_t m : {1, 2, 3, 16, 100, 4096, 1 << 20}) {
      Description description(p, m);
      cublasLtMatmulHeuristicResult_t result{};
      const cublasStatus_t status =
          cublasLtMatmulAlgoCheck(handle_, &description.matmul, &description.a, &description.b,
                                  &description.c, &description.d, &algo, &result);
      if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kWorkspaceBytes) return false;
    }
    return true;
  }

  cudaStream_t stream_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Product::Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace

void pack(void* queue, const PackDims& dims, const void* from, void* to) {
  const cudaStream_t stream = Queue::from(queue).stream;
  const auto* x = static_cast<const float*>(from);
  const bool rows = dims.column == 1;  // contiguous along k
  const int64_t lines = rows ? dims.to.n : dims.to.k, length = rows ? dims.to.k : dims.to.n;
  const int64_t stride = rows ? dims.row : dims.column;
  const int64_t to_stride = rows ? dims.to.row : dims.to.column;
  if (dims.to.dtype == DType::kBF16) {
    convert_lines(stream, lines, length, x, stride, static_cast<__nv_bfloat16*>(to), to_stride);
  } else {
    convert_lines(stream, lines, length, x, stride, static_cast<float*>(to), to_stride);
  }
}

void linear(void* queue, const LinearDims& dims, const float* a, const void* b, const float* start,
            float* c, void* scratch) {
  const int64_t m = dims.m, n = dims.b.n, k = dims.b.k;
  if (m == 0 || n == 0) return;
  Queue& launch = Queue::from(queue);
  if (dims.b.dtype == DType::kF32) {
    return sgemm(launch.stream, launch.multiprocessors, dims, a, static_cast<const float*>(b),
                 start, c);
  }
  if (k == 0 || (start != nullptr && dims.start_row == 0 && start != c)) {
    fill(launch.stream, dims, start, c);  // a bias: the product is added to it
    if (k == 0) return;
    start = c;
  }
  Operand of_a = operand(a, m, k, dims.a_row, dims.a_column);
  convert_lines(launch.stream, of_a.columns, of_a.rows, a, of_a.stride,
                static_cast<__nv_bfloat16*>(scratch), of_a.rows);
  of_a.data = scratch;
  of_a.stride = of_a.rows;
  const int64_t start_row = start == c ? dims.c_row : dims.start_row;
  const Operand d{c, n, m, std::max(dims.c_row, n), true};
  const Product product{
      .a = operand(b, n, k, dims.b.row, dims.b.column),
      .b = of_a,
      .c = start == nullptr ? d : Operand{start, n, m, std::max(start_row, n), true},
      .d = d,
      .beta = start == nullptr ? 0.0f : 1.0f};
  Library::of(launch).run(product, m);
}

void column_sum(void* queue, int64_t rows, int64_t columns, int64_t x_row, const float* x,
                float* y) {
  if (columns == 0) return;
  const auto blocks = static_cast<unsigned>(ceil_div(columns, 32));
  BRAID_CUDA_CHECK(column_sum_kernel<<<blocks, column_block(), 0, Queue::from(queue).stream>>>(
                       rows, columns, x_row, x, y),
                   cudaGetLastError());
}

}  // namespace braid::cuda
