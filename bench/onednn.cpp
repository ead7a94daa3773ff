#include "bench/onednn.h"

#if defined(BRAID_BENCH_HAS_ONEDNN)
#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "braid/core/thread_pool.h"
#endif

namespace braid::bench {

#if defined(BRAID_BENCH_HAS_ONEDNN)
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

struct Slab {
  dnnl::stream stream;
  dnnl::primitive convert, product;
  std::unordered_map<int, memory> convert_arguments, product_arguments;
};

}  // namespace

struct OneDnnLinear::Impl {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  ThreadPool threads;
  std::vector<Slab> slabs;

  explicit Impl(int workers) : threads(workers) {}

  Slab make_slab(int64_t m, int64_t n, int64_t k, DType dtype, const float* a, memory& weights,
                 float* c) {
    const bool bf16 = dtype == DType::kBF16;
    const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc a_desc({m, k}, type, Tag::ab),
        c_desc({m, n}, memory::data_type::f32, Tag::ab);
    const dnnl::inner_product_forward::desc desc(dnnl::prop_kind::forward_inference, a_desc,
                                                 memory::desc({n, k}, type, Tag::any), c_desc);
    const dnnl::inner_product_forward::primitive_desc product(desc, engine);
    Slab slab{.stream = dnnl::stream(engine)};
    memory plain({{m, k}, memory::data_type::f32, Tag::ab}, engine, const_cast<float*>(a));
    memory source = plain;
    if (bf16) {
      source = memory(a_desc, engine);
      slab.convert = dnnl::reorder(plain, source);
      slab.convert_arguments = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, source}};
    }
    memory packed(product.weights_desc(), engine);
    dnnl::reorder(weights, packed).execute(slab.stream, weights, packed);
    slab.stream.wait();
    slab.product = dnnl::inner_product_forward(product);
    slab.product_arguments = {{DNNL_ARG_SRC, source},
                              {DNNL_ARG_WEIGHTS, packed},
                              {DNNL_ARG_DST, memory(c_desc, engine, c)}};
    return slab;
  }
};

bool OneDnnLinear::available() { return true; }

OneDnnLinear::OneDnnLinear(int workers, int64_t m, int64_t n, int64_t k, DType dtype,
                           const float* a, const float* b, float* c)
    : impl_(std::make_unique<Impl>(workers)) {
  // What OpenMP does is decided when a primitive is made as well as when it runs.
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  memory weights({{n, k}, memory::data_type::f32, Tag::ab}, impl_->engine, const_cast<float*>(b));
  for (int i = 0; i < workers; ++i) {
    const int64_t begin = m * i / workers, end = m * (i + 1) / workers;
    if (end == begin) continue;
    impl_->slabs.push_back(
        impl_->make_slab(end - begin, n, k, dtype, a + begin * k, weights, c + begin * n));
  }
  omp_set_num_threads(before);
}

OneDnnLinear::~OneDnnLinear() = default;

void OneDnnLinear::run() {
  auto& slabs = impl_->slabs;
  const auto count = static_cast<int64_t>(slabs.size());
  impl_->threads.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(1);
    for (int64_t i = begin; i < end; ++i) {
      Slab& slab = slabs[static_cast<size_t>(i)];
      if (slab.convert) slab.convert.execute(slab.stream, slab.convert_arguments);
      slab.product.execute(slab.stream, slab.product_arguments);
      slab.stream.wait();
    }
    omp_set_num_threads(before);
  });
}
#else
struct OneDnnLinear::Impl {};
bool OneDnnLinear::available() { return false; }
OneDnnLinear::OneDnnLinear(int, int64_t, int64_t, int64_t, DType, const float*, const float*,
                           float*) {}
OneDnnLinear::~OneDnnLinear() = default;
void OneDnnLinear::run() {}
#endif

}  // namespace braid::bench
