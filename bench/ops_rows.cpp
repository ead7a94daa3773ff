// Ops whose rows have nothing to do with one another. Traffic is each operand once; a function such
// as exp, and a division or a root, count as one operation.

#include <fmt/core.h>

#include <algorithm>

#include "bench/ops.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/activation/cases.h"
#include "braid/ops/activation/reference.h"
#include "braid/ops/elementwise/cases.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/elementwise/reference.h"
#include "braid/ops/gated_rms_norm/cases.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/gated_rms_norm/reference.h"
#include "braid/ops/gelu/cases.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/gelu/reference.h"
#include "braid/ops/l2_norm/cases.h"
#include "braid/ops/l2_norm/l2_norm.h"
#include "braid/ops/l2_norm/reference.h"
#include "braid/ops/layer_norm/cases.h"
#include "braid/ops/layer_norm/layer_norm.h"
#include "braid/ops/layer_norm/reference.h"
#include "braid/ops/rms_norm/cases.h"
#include "braid/ops/rms_norm/reference.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/scale_columns/cases.h"
#include "braid/ops/scale_columns/reference.h"
#include "braid/ops/scale_columns/scale_columns.h"
#include "braid/ops/sine/cases.h"
#include "braid/ops/sine/reference.h"
#include "braid/ops/sine/sine.h"
#include "braid/ops/softplus_decay/cases.h"
#include "braid/ops/softplus_decay/reference.h"
#include "braid/ops/softplus_decay/softplus_decay.h"
#include "braid/ops/swiglu/cases.h"
#include "braid/ops/swiglu/reference.h"
#include "braid/ops/swiglu/swiglu.h"

namespace braid::bench {
namespace {

using Inputs = std::vector<Tensor>;
using Values = std::vector<double>;

constexpr float kEps = 1e-5f;

// A case over (count, width) inputs. `reference` gets the beginning of each of them; inputs of one
// dimension are handed over whole.
OpCase rowwise(std::string size, Inputs inputs, std::function<Outputs(Context&, const Inputs&)> run,
               std::function<Values(const std::vector<Values>&)> reference) {
  OpCase c{.size = std::move(size), .inputs = std::move(inputs), .run = std::move(run)};
  c.reference = [in = c.inputs, reference = std::move(reference)] {
    std::vector<Values> beginnings;
    for (const Tensor& x : in) {
      beginnings.push_back(x.rank() == 1 ? all(x) : rows(x, 0, std::min<int64_t>(8, x.rows())));
    }
    return reference(beginnings);
  };
  return c;
}

std::string size_of(int64_t count, int64_t width) { return fmt::format("{} x {}", count, width); }

}  // namespace

void activation_cases(Context&, const Emit& emit) {
  constexpr std::pair<Activation, const char*> kKinds[] = {{Activation::kSilu, "silu"},
                                                           {Activation::kSoftplus, "softplus"}};
  for (const auto& shape : cases::kActivationBench) {
    const int64_t n = shape.rows * shape.width;
    for (const auto& [activation_kind, name] : kKinds) {
      const Activation kind = activation_kind;
      OpCase c = rowwise(
          fmt::format("{} {}", name, size_of(shape.rows, shape.width)),
          {random({shape.rows, shape.width}, 1)},
          [kind](Context& ctx, const Inputs& in) { return activation(ctx, in[0], kind); },
          [kind](const auto& x) { return reference::activation(x[0], kind); });
      c.bytes = bytes_of({2 * n});
      c.flops = 4.0 * static_cast<double>(n);
      emit(c);
    }
  }
}

void elementwise_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kElementwiseBench) {
    const int64_t n = shape.rows * shape.width;
    const Inputs two = {random({shape.rows, shape.width}, 1), random({shape.rows, shape.width}, 2)};
    OpCase sum = rowwise(
        "add " + size_of(shape.rows, shape.width), two,
        [](Context& ctx, const Inputs& in) { return add(ctx, in[0], in[1]); },
        [](const auto& x) { return reference::add(x[0], x[1]); });
    sum.bytes = bytes_of({3 * n});
    sum.flops = static_cast<double>(n);
    emit(sum);
    OpCase product = rowwise(
        "multiply " + size_of(shape.rows, shape.width), two,
        [](Context& ctx, const Inputs& in) { return multiply(ctx, in[0], in[1]); },
        [](const auto& x) { return reference::multiply(x[0], x[1]); });
    product.bytes = sum.bytes;
    product.flops = sum.flops;
    emit(product);
  }
}

void gated_rms_norm_cases(Context&, const Emit& emit) {
  for (const GatedRmsNormCase& shape : gated_rms_norm_bench_cases()) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width),
        {random({shape.rows, shape.width}, 1), random({shape.rows, shape.width}, 2),
         random({shape.width}, 3)},
        [groups = shape.groups](Context& ctx, const Inputs& in) {
          return gated_rms_norm(ctx, in[0], in[1], in[2], {.groups = groups, .eps = kEps});
        },
        [groups = shape.groups](const auto& x) {
          return reference::gated_rms_norm(x[0], x[1], x[2], groups, kEps, false);
        });
    c.terms = shape.width;
    c.bytes = bytes_of({3 * n, shape.width});
    c.flops = 9.0 * static_cast<double>(n);
    emit(c);
  }
}

void gelu_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kGeluBench) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width), {random({shape.rows, shape.width}, 1)},
        [](Context& ctx, const Inputs& in) { return gelu(ctx, in[0], GeluForm::kTanh); },
        [](const auto& x) { return reference::gelu(x[0], true); });
    c.bytes = bytes_of({2 * n});
    c.flops = 9.0 * static_cast<double>(n);
    emit(c);
  }
}

void l2_norm_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kL2NormBench) {
    const int64_t n = shape.rows * shape.heads * shape.size;
    OpCase c = rowwise(
        fmt::format("{} x {} heads of {}", shape.rows, shape.heads, shape.size),
        {random({shape.rows, shape.heads * shape.size}, 1)},
        [heads = shape.heads](Context& ctx, const Inputs& in) {
          return l2_norm(ctx, in[0], {.heads = heads, .eps = kEps});
        },
        [size = static_cast<size_t>(shape.size)](const auto& x) {
          return reference::l2_norm(x[0], size, 1.0, kEps);
        });
    c.terms = shape.size;
    c.bytes = bytes_of({2 * n});
    c.flops = 3.0 * static_cast<double>(n);
    emit(c);
  }
}

void layer_norm_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kLayerNormBench) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width),
        {random({shape.rows, shape.width}, 1), random({shape.width}, 2), random({shape.width}, 3)},
        [](Context& ctx, const Inputs& in) { return layer_norm(ctx, in[0], in[1], in[2], kEps); },
        [](const auto& x) { return reference::layer_norm(x[0], x[1], x[2], kEps); });
    c.terms = shape.width;
    c.bytes = bytes_of({2 * n, 2 * shape.width});
    c.flops = 8.0 * static_cast<double>(n);
    emit(c);
  }
}

void rms_norm_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kRmsNormBench) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width),
        {random({shape.rows, shape.width}, 1), random({shape.width}, 2)},
        [](Context& ctx, const Inputs& in) { return rms_norm(ctx, in[0], in[1], kEps); },
        [](const auto& x) { return reference::rms_norm(x[0], x[1], kEps); });
    c.terms = shape.width;
    c.bytes = bytes_of({2 * n, shape.width});
    c.flops = 4.0 * static_cast<double>(n);
    emit(c);
  }
}

void scale_columns_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kScaleColumnsBench) {
    int64_t width = 0;
    for (const ColumnScale& segment : shape.segments) width += segment.width;
    OpCase c = rowwise(
        size_of(shape.rows, width), {random({shape.rows, width}, 1)},
        [segments = shape.segments](Context& ctx, const Inputs& in) {
          return scale_columns(ctx, in[0], segments);
        },
        [segments = shape.segments](const auto& x) {
          return reference::scale_columns(x[0], segments);
        });
    c.bytes = bytes_of({2 * shape.rows * width});
    c.flops = static_cast<double>(shape.rows * width);
    emit(c);
  }
}

void sine_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kSineBench) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width),
        {random({shape.rows, shape.width}, 1), random({shape.width}, 2)},
        [](Context& ctx, const Inputs& in) { return sine(ctx, in[0], in[1]); },
        [](const auto& x) { return reference::sine(x[0], x[1]); });
    c.terms = 8;  // an argument of about 8 carries so many times its own rounding into the sine
    c.bytes = bytes_of({2 * n, shape.width});
    c.flops = 2.0 * static_cast<double>(n);
    emit(c);
  }
}

void softplus_decay_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kSoftplusDecayBench) {
    const int64_t n = shape.tokens * shape.heads;
    OpCase c = rowwise(
        size_of(shape.tokens, shape.heads),
        {random({shape.tokens, shape.heads}, 1), random({shape.heads}, 2),
         random({shape.heads}, 3)},
        [](Context& ctx, const Inputs& in) { return softplus_decay(ctx, in[0], in[1], in[2]); },
        [](const auto& x) { return reference::softplus_decay(x[0], x[1], x[2]); });
    c.bytes = bytes_of({2 * n});
    c.flops = 6.0 * static_cast<double>(n);
    emit(c);
  }
}

void swiglu_cases(Context&, const Emit& emit) {
  for (const auto& shape : cases::kSwigluBench) {
    const int64_t n = shape.rows * shape.width;
    OpCase c = rowwise(
        size_of(shape.rows, shape.width), {random({shape.rows, 2 * shape.width}, 1)},
        [](Context& ctx, const Inputs& in) { return swiglu(ctx, in[0]); },
        [width = shape.width](const auto& x) {
          return reference::swiglu(x[0], static_cast<size_t>(width));
        });
    c.bytes = bytes_of({3 * n});
    c.flops = 5.0 * static_cast<double>(n);
    emit(c);
  }
}

}  // namespace braid::bench
