#include "braid/train/experts/alignment.h"

#include <cmath>

#include "braid/core/error.h"
#include "braid/train/experts/assignment.h"

namespace braid {
namespace {

// gain += factor * x, element by element; nothing where the factor has no finite value (a norm 0).
void accumulate(std::vector<float>& gain, const Tensor& x, double norms) {
  if (!(norms > 0)) return;
  const double factor = 1 / norms;
  for (size_t i = 0; i < gain.size(); ++i) {
    gain[i] += static_cast<float>(factor * static_cast<double>(x.f32()[i]));
  }
}

// The norm of all contributions: sqrt(sum_u |h_u|^2 |down_u|^2), from transposed (F, S), (F, D).
double contribution_norm(const Tensor& hidden, const Tensor& down) {
  double sum = 0;
  for (int64_t u = 0; u < hidden.rows(); ++u) {
    const double h = norm_of(hidden.slice_rows(u, u + 1)), d = norm_of(down.slice_rows(u, u + 1));
    sum += h * h * d * d;
  }
  return std::sqrt(sum);
}

void check_pair(const ExpertMatrices& a, const ExpertMatrices& b) {
  check(a.in.shape() == b.in.shape() && a.out.shape() == b.out.shape(),
        "align: experts of shapes {}, {} and {}, {}, want one shape", to_string(a.in.shape()),
        to_string(a.out.shape()), to_string(b.in.shape()), to_string(b.out.shape()));
}

}  // namespace

Alignment align_units(Context& ctx, const ExpertMatrices& a, const ExpertMatrices& b,
                      const Tensor& hidden_a, const Tensor& hidden_b) {
  check_pair(a, b);
  const int64_t F = a.hidden();
  const auto count = static_cast<size_t>(F * F);
  const bool gated = a.gated();
  const auto up = [&](const ExpertMatrices& e) {
    return e.in.slice_rows(gated ? F : 0, gated ? 2 * F : F);
  };
  const Tensor down_a = transpose(a.out), down_b = transpose(b.out);  // (F, D)
  const Tensor downs = product(ctx, down_a, down_b);                  // (F, F), as all below
  std::vector<float> flip(count), gain(count);
  accumulate(flip, product(ctx, up(a), up(b)), norm_of(up(a)) * norm_of(up(b)));
  accumulate(flip, downs, norm_of(down_a) * norm_of(down_b));
  for (size_t i = 0; i < count; ++i) gain[i] = gated ? std::abs(flip[i]) : flip[i];
  if (gated) {
    const Tensor gate_a = a.in.slice_rows(0, F), gate_b = b.in.slice_rows(0, F);
    accumulate(gain, product(ctx, gate_a, gate_b), norm_of(gate_a) * norm_of(gate_b));
  }
  const Tensor rows_a = transpose(hidden_a), rows_b = transpose(hidden_b);  // (F, S)
  const Tensor contributions = product(ctx, rows_a, rows_b);
  for (size_t i = 0; i < count; ++i) contributions.f32()[i] *= downs.f32()[i];
  accumulate(gain, contributions,
             contribution_norm(rows_a, down_a) * contribution_norm(rows_b, down_b));

  for (float& g : gain) g = -g;
  Alignment alignment{.unit = assign(gain, F), .sign = {}};
  for (int64_t u = 0; u < F; ++u) {
    const auto pair = static_cast<size_t>(u * F + alignment.unit[static_cast<size_t>(u)]);
    alignment.sign.push_back(gated && flip[pair] < 0 ? -1.0f : 1.0f);
  }
  return alignment;
}

ExpertMatrices average(const ExpertMatrices& a, const ExpertMatrices& b, const Alignment& to,
                       double share, bool squares) {
  check_pair(a, b);
  const int64_t D = a.width(), F = a.hidden();
  check(static_cast<int64_t>(to.unit.size()) == F, "average: {} units aligned, want {}",
        to.unit.size(), F);
  std::vector<float> in(static_cast<size_t>(a.in.count())), out(static_cast<size_t>(D * F));
  const auto mix = [&](float x, float y, float sign) {
    const double other = static_cast<double>(squares ? 1 : sign) * static_cast<double>(y);
    return static_cast<float>((1 - share) * static_cast<double>(x) + share * other);
  };
  for (int64_t row = 0; row < a.in.rows(); ++row) {
    const int64_t u = row % F;
    const bool gate = a.gated() && row < F;
    const float sign = gate ? 1.0f : to.sign[static_cast<size_t>(u)];
    const float* x = a.in.f32() + row * D;
    const float* y = b.in.f32() + (row - u + to.unit[static_cast<size_t>(u)]) * D;
    float* z = in.data() + row * D;
    for (int64_t d = 0; d < D; ++d) z[d] = mix(x[d], y[d], sign);
  }
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t u = 0; u < F; ++u) {
      const auto at = static_cast<size_t>(u);
      out[static_cast<size_t>(d * F + u)] =
          mix(a.out.f32()[d * F + u], b.out.f32()[d * F + to.unit[at]], to.sign[at]);
    }
  }
  return {host_tensor(std::move(in), a.in.shape()), host_tensor(std::move(out), a.out.shape())};
}

double relative_error(const Tensor& f, const Tensor& g) {
  check(f.shape() == g.shape(), "relative_error: outputs of shapes {} and {}, want one shape",
        to_string(f.shape()), to_string(g.shape()));
  double difference = 0, size = 0;
  for (int64_t i = 0; i < f.count(); ++i) {
    const double x = f.f32()[i], y = g.f32()[i];
    difference += (x - y) * (x - y);
    size += x * x + y * y;
  }
  return size > 0 ? std::sqrt(2 * difference / size) : 0;
}

std::vector<double> relative_errors(ThreadPool& threads, const std::vector<Tensor>& outputs) {
  const auto E = static_cast<int64_t>(outputs.size());
  std::vector<double> errors(static_cast<size_t>(E * E));
  threads.parallel_for(E * E, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t i = pair / E, j = pair % E;
      if (i >= j) continue;
      errors[static_cast<size_t>(pair)] =
          relative_error(outputs[static_cast<size_t>(i)], outputs[static_cast<size_t>(j)]);
    }
  });
  return errors;
}

}  // namespace braid
