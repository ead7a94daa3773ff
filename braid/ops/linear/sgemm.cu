// Products in plain float32. A block owns a tile of c, a thread some elements of it in registers;
// tiles of a and b pass through shared memory, fetched several ahead of their use. Tensor cores and
// libraries are left aside here: this is the path of reference precision, and only a chain that is
// written out has the same bits in every tile.

#include <cuda_pipeline.h>

#include "braid/cuda/check.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/linear/sgemm.h"

namespace braid::cuda {
namespace {

// A block's tile (M, N) of c, taken kDepth values of k at a time, kStages of them in shared memory.
// Its threads form a grid of kThreadsM by kThreadsN, of which a warp covers kLanesN columns.
template <int M, int N, int Depth, int Stages, int ThreadsM, int ThreadsN, int LanesN>
struct Tile {
  static constexpr int kM = M, kN = N, kDepth = Depth, kStages = Stages;
  static constexpr int kThreadsM = ThreadsM, kThreadsN = ThreadsN, kLanesN = LanesN;
  static constexpr int kThreads = ThreadsM * ThreadsN;
  static constexpr int kRows = M / ThreadsM, kColumns = N / ThreadsN;  // of a thread
  // Four floats more than a line of the tile: eight lines by four places then fall into 32 banks.
  static constexpr int kLineA = M + 4, kLineB = N + 4;
};
using Large = Tile<128, 128, 8, 3, 16, 16, 8>;
using Medium = Tile<64, 64, 16, 4, 16, 16, 8>;
using Small = Tile<16, 32, 32, 6, 4, 32, 32>;  // decoding: as much of b under way as will fit

struct Matrix {
  const float* data;
  int64_t rows, stride;  // `stride` elements between rows, or between places along k
};

struct Args {
  Matrix a, b;
  int k;
  const float* start;
  int64_t start_row;
  float* c;
  int64_t c_row;
  int64_t tiles_n;
};

// Brings `kLines` rows of a matrix to shared memory, as [k][row]. Past the last row the last one is
// fetched again, past the last k the last k: no element that is stored depends on them.
template <class T, int kLines, int kLine, bool kAlongK>
class Loader {
 public:
  __device__ Loader(const Matrix& matrix, int64_t first, int k) : stride_(matrix.stride), k_(k) {
#pragma unroll
    for (int i = 0; i < kRowsKept; ++i) {
      const int64_t row = min(first + row_of(i), matrix.rows - 1);
      from_[i] = matrix.data + (kAlongK ? row * stride_ : row);
    }
  }

  __device__ __forceinline__ void fetch(float* to, int k) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = min(k + depth_of(i), k_ - 1);
      const float* from = kAlongK ? from_[i] + at : from_[0] + at * stride_;
      __pipeline_memcpy_async(to + depth_of(i) * kLine + row_of(i), from, sizeof(float));
    }
  }

 private:
  static constexpr int kCount = kLines * T::kDepth / T::kThreads;  // elements of a thread
  static constexpr int kRowsKept = kAlongK ? kCount : 1;
  static_assert(kLines * T::kDepth % T::kThreads == 0 && T::kThreads % kLines == 0);

  // Neighbouring threads take neighbouring elements: eight along k, or a whole line of rows.
  static __device__ int row_of(int i) {
    const int at = i * T::kThreads + static_cast<int>(threadIdx.x);
    return kAlongK ? at / 8 % kLines : at % kLines;
  }
  static __device__ int depth_of(int i) {
    const int at = i * T::kThreads + static_cast<int>(threadIdx.x);
    return kAlongK ? at % 8 + at / (8 * kLines) * 8 : at / kLines;
  }

  const float* from_[kRowsKept];
  int64_t stride_;
  int k_;
};

// Place i of the `kCount` that thread `at` of `kThreads` owns along one side of a tile: in runs of
// up to four.
template <int kCount, int kThreads>
__device__ __forceinline__ int place(int at, int i) {
  constexpr int kRun = kCount < 4 ? kCount : 4;
  return i / kRun * (kRun * kThreads) + at * kRun + i % kRun;
}

template <int kCount, int kThreads>
__device__ __forceinline__ void read_places(const float* line, int at, float* to) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(line + place<kCount, kThreads>(at, i));
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = line[place<kCount, kThreads>(at, i)];
  }
}

template <class T, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(T::kThreads, 2) sgemm_kernel(Args args) {
  __shared__ __align__(16) float tiles_a[T::kStages][T::kDepth * T::kLineA];
  __shared__ __align__(16) float tiles_b[T::kStages][T::kDepth * T::kLineB];
  constexpr int kWarpsM = T::kThreadsM * T::kLanesN / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int at_m = warp % kWarpsM * (32 / T::kLanesN) + lane / T::kLanesN;
  const int at_n = warp / kWarpsM * T::kLanesN + lane % T::kLanesN;
  const int64_t first_m = blockIdx.x / args.tiles_n * T::kM;
  const int64_t first_n = blockIdx.x % args.tiles_n * T::kN;
  // Visits the elements of c that the thread owns.
  const auto each = [&](auto visit) {
#pragma unroll
    for (int i = 0; i < T::kRows; ++i) {
      const int64_t row = first_m + place<T::kRows, T::kThreadsM>(at_m, i);
#pragma unroll
      for (int j = 0; j < T::kColumns; ++j) {
        const int64_t column = first_n + place<T::kColumns, T::kThreadsN>(at_n, j);
        if (row < args.a.rows && column < args.b.rows) visit(i, j, row, column);
      }
    }
  };

  const Loader<T, T::kM, T::kLineA, kAAlongK> load_a(args.a, first_m, args.k);
  const Loader<T, T::kN, T::kLineB, kBAlongK> load_b(args.b, first_n, args.k);
  const int count = (args.k + T::kDepth - 1) / T::kDepth;
  const auto fetch = [&](int tile) {
    if (tile < count) {
      load_a.fetch(tiles_a[tile % T::kStages], tile * T::kDepth);
      load_b.fetch(tiles_b[tile % T::kStages], tile * T::kDepth);
    }
    __pipeline_commit();  // also an empty one, so that as many are always under way
  };
#pragma unroll
  for (int tile = 0; tile + 1 < T::kStages; ++tile) fetch(tile);

  float sum[T::kRows][T::kColumns] = {};
  if (args.start != nullptr) {
    each([&](int i, int j, int64_t row, int64_t column) {
      sum[i][j] = args.start[row * args.start_row + column];
    });
  }
  for (int tile = 0; tile < count; ++tile) {
    __pipeline_wait_prior(T::kStages - 2);
    __syncthreads();  // this tile is there for all, and all are done with the one before
    fetch(tile + T::kStages - 1);
    const float* tile_a = tiles_a[tile % T::kStages];
    const float* tile_b = tiles_b[tile % T::kStages];
    const auto step = [&](int p) {
      float x[T::kRows], w[T::kColumns];
      read_places<T::kRows, T::kThreadsM>(tile_a + p * T::kLineA, at_m, x);
      read_places<T::kColumns, T::kThreadsN>(tile_b + p * T::kLineB, at_n, w);
#pragma unroll
      for (int i = 0; i < T::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < T::kColumns; ++j) sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
      }
    };
    const int depth = args.k - tile * T::kDepth;
    if (depth >= T::kDepth) {
#pragma unroll
      for (int p = 0; p < T::kDepth; ++p) step(p);
    } else {
#pragma unroll 1
      for (int p = 0; p < depth; ++p) step(p);
    }
  }
  each([&](int i, int j, int64_t row, int64_t column) {
    args.c[row * args.c_row + column] = sum[i][j];
  });
}

template <class T>
int64_t tiles(int64_t m, int64_t n) {
  return ceil_div(m, T::kM) * ceil_div(n, T::kN);
}

template <class T>
void launch(cudaStream_t stream, Args args, bool a_along_k, bool b_along_k) {
  args.tiles_n = ceil_div(args.b.rows, T::kN);
  const auto kernel =
      a_along_k ? (b_along_k ? sgemm_kernel<T, true, true> : sgemm_kernel<T, true, false>)
                : (b_along_k ? sgemm_kernel<T, false, true> : sgemm_kernel<T, false, false>);
  const auto blocks = static_cast<unsigned>(tiles<T>(args.a.rows, args.b.rows));
  BRAID_CUDA_CHECK(kernel<<<blocks, T::kThreads, 0, stream>>>(args), cudaGetLastError());
}

}  // namespace

void sgemm(cudaStream_t stream, int multiprocessors, const LinearDims& dims, const float* a,
           const float* b, const float* start, float* c) {
  const int64_t m = dims.m, n = dims.b.n;
  const bool a_along_k = dims.a_column == 1, b_along_k = dims.b.column == 1;
  const Args args{.a = {a, m, a_along_k ? dims.a_row : dims.a_column},
                  .b = {b, n, b_along_k ? dims.b.row : dims.b.column},
                  .k = static_cast<int>(dims.b.k),
                  .start = start,
                  .start_row = dims.start_row,
                  .c = c,
                  .c_row = dims.c_row,
                  .tiles_n = 0};
  if (m <= Small::kM) {
    launch<Small>(stream, args, a_along_k, b_along_k);
  } else if (tiles<Large>(m, n) >= multiprocessors) {
    launch<Large>(stream, args, a_along_k, b_along_k);
  } else {
    launch<Medium>(stream, args, a_along_k, b_along_k);
  }
}

}  // namespace braid::cuda
