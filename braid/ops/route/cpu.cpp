// A row is one token. Its scores are vectors over the experts; the choice is a scan over them that
// keeps the k best, which is little beside the product that made the logits.

#include <algorithm>
#include <atomic>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/route/choice.h"
#include "braid/ops/route/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/route/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

bool route_finite(int64_t count, const float* x) {
  bool finite = true;
  vec::for_each_vector(static_cast<size_t>(count), [&](auto at, size_t i) {
    finite &= hn::AllTrue(vec::F32Tag(), hn::IsFinite(at.load(x + i)));
  });
  return finite;
}

// p <- softmax(x); returns log sum exp x.
float route_softmax(int64_t count, const float* x, float* p) {
  const vec::F32Tag d;
  const auto n = static_cast<size_t>(count);
  const float top = *std::max_element(x, x + count);
  const vec::F32 shift = hn::Set(d, top), zero = hn::Zero(d);
  const float sum = vec::sum_over_row(n, [&](auto at, size_t i, vec::F32 acc) {
    const vec::F32 e = vec::exp(hn::Sub(at.load(x + i), shift));
    at.store(e, p + i);
    return hn::Add(acc, at.keep(e, zero));
  });
  const vec::F32 all = hn::Set(d, sum);
  vec::for_each_vector(n,
                       [&](auto at, size_t i) { at.store(hn::Div(at.load(p + i), all), p + i); });
  return top + std::log(sum);
}

void route_sigmoid(int64_t count, const float* x, float* s) {
  vec::for_each_vector(static_cast<size_t>(count),
                       [&](auto at, size_t i) { at.store(vec::sigmoid(at.load(x + i)), s + i); });
}

void route_add(int64_t count, const float* a, const float* b, float* sum) {
  vec::for_each_vector(static_cast<size_t>(count), [&](auto at, size_t i) {
    at.store(hn::Add(at.load(a + i), at.load(b + i)), sum + i);
  });
}

float route_dot(int64_t count, const float* a, const float* b) {
  return vec::sum_over_row(static_cast<size_t>(count), [&](auto at, size_t i, vec::F32 acc) {
    return hn::MulAdd(at.load(a + i), at.load(b + i), acc);
  });
}

// dx <- p (u + shift), to which softmax's vjp comes with shift = -<p, u>.
void route_softmax_vjp(int64_t count, const float* p, const float* u, float shift, float* dx) {
  const vec::F32 v = hn::Set(vec::F32Tag(), shift);
  vec::for_each_vector(static_cast<size_t>(count), [&](auto at, size_t i) {
    at.store(hn::Mul(at.load(p + i), hn::Add(at.load(u + i), v)), dx + i);
  });
}

// dx <- dx + s'(x) (u + shift) rate, with s the sigmoid.
void route_sigmoid_vjp(int64_t count, const float* x, const float* u, float shift, float rate,
                       float* dx) {
  const vec::F32Tag d;
  const vec::F32 v = hn::Set(d, shift), r = hn::Set(d, rate);
  vec::for_each_vector(static_cast<size_t>(count), [&](auto at, size_t i) {
    const vec::F32 xi = at.load(x + i);
    const vec::F32 slope = hn::Mul(vec::sigmoid(xi), vec::sigmoid(hn::Neg(xi)));
    const vec::F32 du = hn::Mul(hn::Add(at.load(u + i), v), r);
    at.store(hn::MulAdd(slope, du, at.load(dx + i)), dx + i);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
namespace {

HWY_EXPORT(route_finite);
HWY_EXPORT(route_softmax);
HWY_EXPORT(route_sigmoid);
HWY_EXPORT(route_add);
HWY_EXPORT(route_dot);
HWY_EXPORT(route_softmax_vjp);
HWY_EXPORT(route_sigmoid_vjp);

constexpr float kSmallestSum = 1e-20f;

int64_t grain_of(const RouteDims& dims) { return 1 + 8192 / (dims.experts + 8 * dims.k()); }

float group_score(const RouteDims& dims, const float* choice) {
  float values[2];
  int32_t ids[2];
  const int64_t best =
      dims.options.group_score == GroupScore::kTop2 ? std::min<int64_t>(2, dims.group()) : 1;
  Best list(best, values, ids);
  for (int64_t e = 0; e < dims.group(); ++e) list.offer(choice[e], e);
  return best == 2 ? values[0] + values[1] : values[0];
}

// `spare` has room for k + 2 groups.
void choose(const RouteDims& dims, const float* choice, float* spare, int32_t* chosen) {
  Best best(dims.k(), spare, chosen);
  if (dims.options.kept_groups == dims.options.groups) {
    for (int64_t e = 0; e < dims.experts; ++e) best.offer(choice[e], e);
    return;
  }
  float* values = spare + dims.k();
  auto* kept = reinterpret_cast<int32_t*>(values + dims.options.groups);
  Best groups(dims.options.kept_groups, values, kept);
  for (int64_t g = 0; g < dims.options.groups; ++g) {
    groups.offer(group_score(dims, choice + g * dims.group()), g);
  }
  std::sort(kept, kept + dims.options.kept_groups);  // the lower expert first, for ties
  for (int64_t i = 0; i < dims.options.kept_groups; ++i) {
    const int64_t first = kept[i] * dims.group();
    for (int64_t e = first; e < first + dims.group(); ++e) best.offer(choice[e], e);
  }
}

// s_j of the chosen slots, before any normalisation. `scores` is of all experts (kSelected: the
// logits); `spare` has room for k.
void slot_scores(const RouteDims& dims, const float* scores, const int32_t* chosen, float* spare,
                 float* slots) {
  const bool selected = dims.options.score == RouteScore::kSelected;
  float* gathered = selected ? spare : slots;
  for (int64_t j = 0; j < dims.k(); ++j) gathered[j] = scores[chosen[j]];
  if (selected) HWY_DYNAMIC_DISPATCH(route_softmax)(dims.k(), gathered, slots);
}

float sum_of_slots(const RouteDims& dims, const float* slots) {
  float sum = 0;
  for (int64_t j = 0; j < dims.k(); ++j) sum += slots[j];
  return sum + kSmallestSum;
}

// The scores of one token, in `own` (E) or the logits themselves.
const float* route_scores(const RouteDims& dims, const float* logits, float* own) {
  if (dims.options.score == RouteScore::kSelected) return logits;
  if (dims.options.score == RouteScore::kSigmoid) {
    HWY_DYNAMIC_DISPATCH(route_sigmoid)(dims.experts, logits, own);
  } else {
    HWY_DYNAMIC_DISPATCH(route_softmax)(dims.experts, logits, own);
  }
  return own;
}

void route_row(const RouteDims& dims, const float* logits, const float* bias, float* scratch,
               int32_t* chosen, float* weights) {
  const int64_t E = dims.experts, k = dims.k();
  float *own = scratch, *biased = own + E, *spare = biased + E;
  const float* scores = route_scores(dims, logits, own);
  if (bias != nullptr) HWY_DYNAMIC_DISPATCH(route_add)(E, scores, bias, biased);
  choose(dims, bias != nullptr ? biased : scores, spare, chosen);
  slot_scores(dims, scores, chosen, spare, weights);
  const float sum = dims.options.normalise ? sum_of_slots(dims, weights) : 1.0f;
  for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] / sum * dims.options.scale;
}

}  // namespace

void route(ThreadPool& threads, const RouteDims& dims, const float* logits, const float* bias,
           float* scratch, int32_t* chosen, float* weights, int32_t* load, int64_t* bad) {
  const int64_t k = dims.k();
  std::atomic<int64_t> first_bad = dims.tokens;
  threads.parallel_for(dims.tokens, grain_of(dims), [&](int64_t begin, int64_t end, int worker) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = logits + n * dims.stride;
      if (HWY_DYNAMIC_DISPATCH(route_finite)(dims.experts, row)) {
        route_row(dims, row, bias, scratch + worker * dims.scratch(), chosen + n * k,
                  weights + n * k);
        continue;
      }
      std::fill_n(chosen + n * k, k, -1);
      std::fill_n(weights + n * k, k, 0.0f);
      int64_t known = first_bad.load();
      while (n < known && !first_bad.compare_exchange_weak(known, n)) {
      }
    }
  });
  *bad = first_bad.load();
  std::fill_n(load, dims.experts, 0);
  for (int64_t i = 0; i < dims.tokens * k; ++i) {
    if (chosen[i] >= 0) ++load[chosen[i]];
  }
}

void route_uncertain(ThreadPool& threads, const RouteDims& dims, float margin, const float* logits,
                     const float* bias, float* scratch, float* uncertain) {
  const int64_t E = dims.experts, k = dims.k();
  threads.parallel_for(dims.tokens, grain_of(dims), [&](int64_t begin, int64_t end, int worker) {
    float *own = scratch + worker * dims.scratch(), *biased = own + E, *spare = biased + E;
    // Behind the k + 2 groups of floats that a choice takes.
    auto* chosen = reinterpret_cast<int32_t*>(spare + k + 2 * dims.options.groups);
    for (int64_t n = begin; n < end; ++n) {
      const float* row = logits + n * dims.stride;
      uncertain[n] = 0;
      if (!HWY_DYNAMIC_DISPATCH(route_finite)(E, row)) continue;
      const float* scores = route_scores(dims, row, own);
      if (bias != nullptr) HWY_DYNAMIC_DISPATCH(route_add)(E, scores, bias, biased);
      choose(dims, bias != nullptr ? biased : scores, spare, chosen);
      uncertain[n] = spare[k - 2] - spare[k - 1] < margin ? 1.0f : 0.0f;
    }
  });
}

void route_limit(ThreadPool&, const RouteDims& dims, int64_t limit, const int32_t* chosen,
                 int32_t* taken, int32_t* experts, float* weights) {
  std::fill_n(taken, dims.experts, 0);
  for (int64_t j = 0; j < dims.k(); ++j) {
    for (int64_t n = 0; n < dims.tokens; ++n) {
      const int64_t i = n * dims.k() + j;
      const bool fits = taken[chosen[i]] < limit;
      experts[i] = fits ? chosen[i] : -1;
      if (fits) ++taken[chosen[i]];
      if (!fits) weights[i] = 0;
    }
  }
}

void route_pressure(ThreadPool&, const RouteDims& dims, const RouteSequences& sequences,
                    const int32_t* chosen, float* pressure) {
  const int64_t E = dims.experts, k = dims.k(), S = sequences.count;
  const double choices = static_cast<double>(dims.tokens * k), all = static_cast<double>(E);
  std::fill_n(pressure, S * E, 0.0f);
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t i = sequences.offsets[s] * k; i < sequences.offsets[s + 1] * k; ++i) {
      pressure[s * E + chosen[i]] += 1;
    }
  }
  for (int64_t e = 0; e < E; ++e) {
    double count = 0;
    for (int64_t s = 0; s < S; ++s) count += pressure[s * E + e];
    const double of_batch = dims.options.balance_loss * all * count / choices;
    for (int64_t s = 0; s < S; ++s) {
      const auto length = static_cast<double>(sequences.offsets[s + 1] - sequences.offsets[s]);
      const double share =
          length == 0 ? 0 : pressure[s * E + e] / (length * static_cast<double>(k));
      pressure[s * E + e] = static_cast<float>(
          (of_batch + dims.options.sequence_loss * all * share) / static_cast<double>(dims.tokens));
    }
  }
}

namespace {

// The gradient by the scores of the chosen slots, from that by their weights.
void slot_grads(const RouteDims& dims, const int32_t* experts, const float* slots, const float* dw,
                float* ds) {
  const int64_t k = dims.k();
  for (int64_t j = 0; j < k; ++j) ds[j] = experts[j] < 0 ? 0 : dw[j] * dims.options.scale;
  if (!dims.options.normalise) return;
  const float sum = sum_of_slots(dims, slots);
  float inner = 0;
  for (int64_t j = 0; j < k; ++j) inner += ds[j] * (slots[j] / sum);
  for (int64_t j = 0; j < k; ++j) ds[j] = (ds[j] - inner) / sum;
}

struct RouteRow {
  const float* logits;    // (E)
  const int32_t* chosen;  // (k)
  const float* pressure;  // (E) or null
  const float* ds;        // (k)
  const float* slots;     // (k)
};

// dlogits of softmax scores, or of the auxiliary losses alone; `scores` is softmax(logits).
void softmax_row_vjp(const RouteDims& dims, const RouteRow& row, bool with_slots, float lse,
                     const float* scores, float* u, float* dlogits) {
  const int64_t E = dims.experts;
  if (row.pressure != nullptr) {
    std::copy_n(row.pressure, E, u);
  } else {
    std::fill_n(u, E, 0.0f);
  }
  if (with_slots) {
    for (int64_t j = 0; j < dims.k(); ++j) u[row.chosen[j]] += row.ds[j];
  }
  const float of_z = 2 * dims.options.z_loss * lse / static_cast<float>(dims.tokens);
  const float shift = of_z - HWY_DYNAMIC_DISPATCH(route_dot)(E, scores, u);
  HWY_DYNAMIC_DISPATCH(route_softmax_vjp)(E, scores, u, shift, dlogits);
}

void sigmoid_row_vjp(const RouteDims& dims, const RouteRow& row, float* scores, float* u,
                     float* dlogits) {
  const int64_t E = dims.experts;
  std::fill_n(dlogits, E, 0.0f);
  if (dims.options.z_loss != 0) {
    const float lse = HWY_DYNAMIC_DISPATCH(route_softmax)(E, row.logits, scores);
    std::fill_n(u, E, 0.0f);
    const float of_z = 2 * dims.options.z_loss * lse / static_cast<float>(dims.tokens);
    HWY_DYNAMIC_DISPATCH(route_softmax_vjp)(E, scores, u, of_z, dlogits);
  }
  if (row.pressure != nullptr) {  // by s / sum s
    HWY_DYNAMIC_DISPATCH(route_sigmoid)(E, row.logits, scores);
    std::fill_n(u, E, 1.0f);
    const float sum = HWY_DYNAMIC_DISPATCH(route_dot)(E, scores, u) + kSmallestSum;
    const float inner = HWY_DYNAMIC_DISPATCH(route_dot)(E, scores, row.pressure) / sum;
    HWY_DYNAMIC_DISPATCH(route_sigmoid_vjp)(E, row.logits, row.pressure, -inner, 1 / sum, dlogits);
  }
  std::fill_n(u, E, 0.0f);
  for (int64_t j = 0; j < dims.k(); ++j) u[row.chosen[j]] = row.ds[j];
  HWY_DYNAMIC_DISPATCH(route_sigmoid_vjp)(E, row.logits, u, 0, 1, dlogits);
}

void selected_row_vjp(const RouteDims& dims, const RouteRow& row, float* scores, float* u,
                      float* dlogits) {
  if (row.pressure != nullptr || dims.options.z_loss != 0) {
    const float lse = HWY_DYNAMIC_DISPATCH(route_softmax)(dims.experts, row.logits, scores);
    softmax_row_vjp(dims, row, false, lse, scores, u, dlogits);
  } else {
    std::fill_n(dlogits, dims.experts, 0.0f);
  }
  float inner = 0;
  for (int64_t j = 0; j < dims.k(); ++j) inner += row.slots[j] * row.ds[j];
  for (int64_t j = 0; j < dims.k(); ++j) {
    dlogits[row.chosen[j]] += row.slots[j] * (row.ds[j] - inner);
  }
}

}  // namespace

void route_vjp(ThreadPool& threads, const RouteDims& dims, const RouteSequences& sequences,
               const float* logits, const int32_t* chosen, const int32_t* experts,
               const float* pressure, const float* dweights, float* scratch, float* dlogits) {
  const int64_t E = dims.experts, k = dims.k();
  threads.parallel_for(dims.tokens, grain_of(dims), [&](int64_t begin, int64_t end, int worker) {
    float* scores = scratch + worker * dims.scratch();
    float *u = scores + E, *slots = u + E, *spare = slots + k, *ds = spare + k;
    const int64_t* offset =
        std::upper_bound(sequences.offsets, sequences.offsets + sequences.count, begin);
    for (int64_t n = begin; n < end; ++n) {
      while (n >= *offset) ++offset;
      const int64_t s = offset - sequences.offsets - 1;
      RouteRow row{logits + n * dims.stride, chosen + n * k,
                   pressure == nullptr ? nullptr : pressure + s * E, ds, slots};
      float lse = 0;
      if (dims.options.score == RouteScore::kSigmoid) {
        HWY_DYNAMIC_DISPATCH(route_sigmoid)(E, row.logits, scores);
      } else if (dims.options.score == RouteScore::kSoftmax) {
        lse = HWY_DYNAMIC_DISPATCH(route_softmax)(E, row.logits, scores);
      }
      const bool selected = dims.options.score == RouteScore::kSelected;
      slot_scores(dims, selected ? row.logits : scores, row.chosen, spare, slots);
      slot_grads(dims, experts + n * k, slots, dweights + n * k, ds);
      switch (dims.options.score) {
        case RouteScore::kSoftmax:
          softmax_row_vjp(dims, row, true, lse, scores, u, dlogits + n * E);
          break;
        case RouteScore::kSigmoid:
          sigmoid_row_vjp(dims, row, scores, u, dlogits + n * E);
          break;
        case RouteScore::kSelected:
          selected_row_vjp(dims, row, scores, u, dlogits + n * E);
          break;
      }
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
