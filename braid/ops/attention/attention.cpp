#include "braid/ops/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/attention/kernels.h"

namespace braid {

using AppendKernel = Kernel<&cpu::attention_append>;
using ForwardKernel = Kernel<&cpu::attention>;
using VjpKernel = Kernel<&cpu::attention_vjp>;

namespace {

constexpr int64_t kNoWindow = std::numeric_limits<int64_t>::max();

AttentionDims make_dims(const Tensor& q, const Tensor& k, const Tensor& v,
                        const SequenceBatch& batch, const AttentionOptions& o) {
  check(o.heads > 0 && o.kv_heads > 0 && o.heads % o.kv_heads == 0,
        "attention: {} heads share {} kv heads, want a positive multiple", o.heads, o.kv_heads);
  check(o.window >= 0, "attention: window is {}, want 0 (none) or more", o.window);
  const int64_t n = batch.tokens();
  const bool in_keys = o.values_in_keys > 0;
  check(o.values_in_keys >= 0 && (!in_keys || (!v.defined() && o.window == 0)),
        "attention: the values are the first {} dimensions of the keys, want no v and no window",
        o.values_in_keys);
  for (const auto& [x, heads, name] :
       {std::tuple{&q, o.heads, "q"}, std::tuple{&k, o.kv_heads, "k"},
        std::tuple{in_keys ? &k : &v, o.kv_heads, "v"}}) {
    check(x->rank() == 2 && x->rows() == n && x->dim(1) > 0 && x->dim(1) % heads == 0,
          "attention: {} has shape {}, want ({}, {} heads)", name, to_string(x->shape()), n, heads);
  }
  AttentionDims dims{.heads = o.heads,
                     .kv_heads = o.kv_heads,
                     .head_dim = q.dim(1) / o.heads,
                     .value_dim = in_keys ? o.values_in_keys : v.dim(1) / o.kv_heads,
                     .window = o.window == 0 ? kNoWindow : o.window,
                     .q_stride = q.row_stride(),
                     .k_stride = k.row_stride(),
                     .v_stride = in_keys ? 0 : v.row_stride(),
                     .page_dtype = DType::kF32,
                     .values_in_keys = in_keys};
  const int64_t hd = dims.head_dim;
  check(k.dim(1) == o.kv_heads * hd, "attention: k has shape {}, want ({}, {})",
        to_string(k.shape()), n, o.kv_heads * hd);
  check(hd % 8 == 0 && dims.value_dim % 8 == 0 && hd <= 1024 && dims.value_dim <= 1024,
        "attention: heads are {} wide and their values {}, want multiples of 8 up to 1024", hd,
        dims.value_dim);
  check(!in_keys || dims.value_dim <= hd,
        "attention: values are {} wide inside keys of {}, want at most as much", dims.value_dim,
        hd);
  dims.scale =
      static_cast<float>(o.scale != 0 ? o.scale : 1.0 / std::sqrt(static_cast<double>(hd)));
  return dims;
}

/// Fresh float32 pages for whole sequences.
struct PackedPages {
  Tensor storage;
  std::vector<void*> pages;
};

PackedPages make_pages(Context& ctx, int64_t count, int64_t bytes) {
  PackedPages packed{.storage = ctx.empty({count, bytes}, DType::kU8)};
  for (int64_t i = 0; i < count; ++i) {
    packed.pages.push_back(packed.storage.data<uint8_t>() + i * bytes);
  }
  return packed;
}

int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

int64_t whole_pages(const SequenceBatch& batch) {
  int64_t count = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) count += pages_for(batch.length(s));
  return count;
}

/// Each sequence from its own row 0, with its run of the packed pages.
std::vector<AttentionSequence> whole_sequences(const SequenceBatch& batch, const PackedPages& k,
                                               const PackedPages& v) {
  std::vector<AttentionSequence> sequences;
  int64_t page = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    sequences.push_back({.row = batch.offsets[static_cast<size_t>(s)],
                         .length = batch.length(s),
                         .start = 0,
                         .k_pages = k.pages.data() + page,
                         .v_pages = v.pages.data() + page,
                         .pages = pages_for(batch.length(s))});
    page += sequences.back().pages;
  }
  return sequences;
}

void append(Context& ctx, const AttentionDims& dims,
            const std::vector<AttentionSequence>& sequences, const float* k, const float* v) {
  std::vector<AttentionSpan> spans;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t end = sequences[s].start + sequences[s].length;
    for (int64_t t = sequences[s].start; t < end;) {
      const int64_t next = std::min(end, (t / kPageTokens + 1) * kPageTokens);
      spans.push_back({.sequence = static_cast<int64_t>(s), .begin = t, .end = next});
      t = next;
    }
  }
  AppendKernel::run(ctx, "attention", dims, sequences.data(), static_cast<int64_t>(spans.size()),
                    spans.data(), k, v);
}

struct Work {
  std::vector<AttentionItem> items;
  int64_t grain = 1;
};

/// As many as an item may have, but a share each where one would have them all: a decode step of
/// many heads that read the same keys.
int64_t rows_of_item(const AttentionDims& dims, const std::vector<AttentionSequence>& sequences,
                     int threads) {
  int64_t most = 0;
  for (const AttentionSequence& s : sequences) most = std::max(most, s.length * dims.group());
  const int64_t others = static_cast<int64_t>(sequences.size()) * dims.kv_heads;
  const int64_t shares = std::max<int64_t>(1, threads / std::max<int64_t>(1, others));
  return std::clamp<int64_t>((most + shares - 1) / shares, 1, cpu::kAttentionItemRows);
}

/// Splits queries into items, the expensive ones first so that threads end together.
Work plan(const AttentionDims& dims, const std::vector<AttentionSequence>& sequences, int threads) {
  struct Costed {
    AttentionItem item;
    int64_t cost;
  };
  std::vector<Costed> costed;
  int64_t total = 0;
  const int64_t item_rows = rows_of_item(dims, sequences, threads);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t rows = sequences[s].length * dims.group();
    for (int64_t begin = 0; begin < rows; begin += item_rows) {
      const int64_t end = std::min(rows, begin + item_rows);
      const int64_t position = sequences[s].start + (end - 1) / dims.group();
      const int64_t cost = (end - begin) * (std::min(position + 1, dims.window) + kPageTokens);
      for (int64_t h = 0; h < dims.kv_heads; ++h) {
        costed.push_back(
            {{.sequence = static_cast<int64_t>(s), .kv_head = h, .begin = begin, .end = end},
             cost});
        total += cost;
      }
    }
  }
  std::stable_sort(costed.begin(), costed.end(),
                   [](const Costed& a, const Costed& b) { return a.cost > b.cost; });
  Work work;
  for (const Costed& c : costed) work.items.push_back(c.item);
  // About 30 microseconds of arithmetic are worth a second thread.
  const int64_t flops = 2 * total * (dims.head_dim + dims.value_dim);
  if (flops < (int64_t{1} << 21)) work.grain = static_cast<int64_t>(costed.size());
  return work;
}

void attend(Context& ctx, const AttentionDims& dims,
            const std::vector<AttentionSequence>& sequences, const float* q, float* y, float* lse) {
  const Work work = plan(dims, sequences, ctx.threads().size());
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::attention_scratch(dims)});
  ForwardKernel::run(ctx, "attention", dims, sequences.data(),
                     static_cast<int64_t>(work.items.size()), work.items.data(), work.grain, q, y,
                     lse, scratch.f32());
}

Grads whole_vjp(Context& ctx, AttentionDims dims, const SequenceBatch& batch, const Tensor& q,
                const Tensor& k, const Tensor& v, const Tensor& y, const Tensor& lse,
                const Tensor& dy) {
  const int64_t count = whole_pages(batch), hd = dims.head_dim, dv = dims.value_dim;
  // Keys in both layouts (lanes for scores, rows for dq); values with keys along lanes.
  const PackedPages k_lanes =
      make_pages(ctx, count, attention_page_bytes(dims.kv_heads, hd, DType::kF32));
  const PackedPages k_rows =
      make_pages(ctx, count, attention_page_bytes(dims.kv_heads, hd, DType::kF32));
  const PackedPages v_lanes =
      make_pages(ctx, count, attention_page_bytes(dims.kv_heads, dv, DType::kF32));
  const auto sequences = whole_sequences(batch, k_lanes, k_rows);
  AttentionDims as_rows = dims;
  as_rows.value_dim = hd;
  as_rows.v_stride = dims.k_stride;
  append(ctx, as_rows, sequences, k.f32(), k.f32());
  AttentionDims as_lanes = dims;
  as_lanes.head_dim = dv;
  as_lanes.k_stride = dims.v_stride;
  append(ctx, as_lanes, whole_sequences(batch, v_lanes, v_lanes), v.f32(), nullptr);

  std::vector<AttentionItem> items;
  int64_t page = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (int64_t h = 0; h < dims.kv_heads && sequences[s].length > 0; ++h) {
      items.push_back({.sequence = static_cast<int64_t>(s), .kv_head = h, .begin = page, .end = 0});
    }
    page += sequences[s].pages;
  }
  std::stable_sort(items.begin(), items.end(), [&](const AttentionItem& a, const AttentionItem& b) {
    return sequences[static_cast<size_t>(a.sequence)].length >
           sequences[static_cast<size_t>(b.sequence)].length;
  });
  Tensor dq = ctx.empty(q.shape()), dk = ctx.empty(k.shape()), dv_ = ctx.empty(v.shape());
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::attention_vjp_scratch(dims)});
  VjpKernel::run(ctx, "attention", dims, sequences.data(), static_cast<int64_t>(items.size()),
                 items.data(), int64_t{1},
                 cpu::AttentionVjpInputs{.q = q.f32(),
                                         .y = y.f32(),
                                         .lse = lse.f32(),
                                         .dy = dy.f32(),
                                         .dy_stride = dy.row_stride(),
                                         .v_lanes = v_lanes.pages.data()},
                 dq.f32(), dk.f32(), dv_.f32(), scratch.f32());
  return {dq, dk, dv_};
}

/// One sequence's caches as the kernels should see them. Where a piece would wrap around a ring and
/// overwrite keys that its first queries still need, its tokens go to fresh pages, which replace
/// the ring's at the end.
struct StagedCache {
  std::vector<void*> k_pages, v_pages;  // page p of the sequence at p modulo their number
  Tensor k_storage, v_storage;
  int64_t first_page = 0, end_page = 0;  // of the fresh ones
};

void check_cache(const AttentionDims& dims, const SequenceBatch& batch, int64_t s,
                 const KvCache& cache) {
  const int64_t start = batch.starts[static_cast<size_t>(s)], end = start + batch.length(s);
  check(start >= 0, "attention: sequence {} starts at {}, want 0 or more", s, start);
  check(cache.dtype == dims.page_dtype, "attention: sequence {} has a {} cache, want {} as others",
        s, to_string(cache.dtype), to_string(dims.page_dtype));
  const int64_t v_pages = dims.values_in_keys ? cache.k.count : cache.v.count;
  check(cache.k.count == v_pages, "attention: sequence {} has {} k pages and {} v pages", s,
        cache.k.count, v_pages);
  const int64_t held = cache.k.count * kPageTokens;
  const int64_t ring = dims.window == kNoWindow ? kNoWindow : dims.window + kPageTokens - 1;
  const int64_t want = std::min(end, ring);
  check(held >= want, "attention: the cache of sequence {} holds {} tokens, want {}", s, held,
        want);
}

int64_t first_needed_page(const AttentionDims& dims, const AttentionSequence& s) {
  return s.start < dims.window ? 0 : (s.start - dims.window + 1) / kPageTokens;
}

bool overwrites_needed_keys(const AttentionDims& dims, const AttentionSequence& s) {
  return s.length > 0 &&
         (s.start + s.length - 1) / kPageTokens - first_needed_page(dims, s) >= s.pages;
}

StagedCache stage(Context& ctx, const AttentionDims& dims, AttentionSequence& s) {
  const int64_t first = s.start / kPageTokens, end = pages_for(s.start + s.length);
  const int64_t k_bytes = attention_page_bytes(dims.kv_heads, dims.head_dim, dims.page_dtype);
  const int64_t v_bytes = attention_page_bytes(dims.kv_heads, dims.value_dim, dims.page_dtype);
  PackedPages k = make_pages(ctx, end - first, k_bytes);
  PackedPages v = make_pages(ctx, end - first, v_bytes);
  if (s.start % kPageTokens != 0) {
    ctx.api().copy(k.pages[0], s.k_page(s.start), static_cast<size_t>(k_bytes));
    ctx.api().copy(v.pages[0], s.v_page(s.start), static_cast<size_t>(v_bytes));
  }
  StagedCache staged{
      .k_storage = k.storage, .v_storage = v.storage, .first_page = first, .end_page = end};
  const int64_t needed = first_needed_page(dims, s), count = end - needed;
  staged.k_pages.resize(static_cast<size_t>(count));
  staged.v_pages.resize(static_cast<size_t>(count));
  for (int64_t p = needed; p < end; ++p) {
    const auto to = static_cast<size_t>(p % count), from = static_cast<size_t>(p - first);
    staged.k_pages[to] = p >= first ? k.pages[from] : s.k_page(p * kPageTokens);
    staged.v_pages[to] = p >= first ? v.pages[from] : s.v_page(p * kPageTokens);
  }
  s.k_pages = staged.k_pages.data();
  s.v_pages = staged.v_pages.data();
  s.pages = count;
  return staged;
}

void unstage(Context& ctx, const AttentionDims& dims, const StagedCache& staged,
             const KvCache& cache) {
  const auto count = static_cast<int64_t>(staged.k_pages.size());
  const int64_t k_bytes = attention_page_bytes(dims.kv_heads, dims.head_dim, dims.page_dtype);
  const int64_t v_bytes = attention_page_bytes(dims.kv_heads, dims.value_dim, dims.page_dtype);
  for (int64_t p = std::max(staged.first_page, staged.end_page - cache.k.count);
       p < staged.end_page; ++p) {
    const auto from = static_cast<size_t>(p % count);
    ctx.api().copy(cache.k.page_of(p * kPageTokens), staged.k_pages[from],
                   static_cast<size_t>(k_bytes));
    ctx.api().copy(cache.v.page_of(p * kPageTokens), staged.v_pages[from],
                   static_cast<size_t>(v_bytes));
  }
}

}  // namespace

int64_t attention_page_bytes(int64_t kv_heads, int64_t head_dim, DType dtype) {
  return kPageTokens * kv_heads * head_dim * static_cast<int64_t>(size_of(dtype));
}

Tensor attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                 const SequenceBatch& batch, const AttentionOptions& options) {
  const AttentionDims dims = make_dims(q, k, v, batch, options);
  check(!dims.values_in_keys || ctx.tape() == nullptr || !(Tape::tracks(q) || Tape::tracks(k)),
        "attention: keys that hold their values have no gradient; pass the values as v");
  const int64_t count = whole_pages(batch);
  const PackedPages k_pages =
      make_pages(ctx, count, attention_page_bytes(dims.kv_heads, dims.head_dim, DType::kF32));
  const int64_t v_width = dims.values_in_keys ? 0 : dims.value_dim;
  const PackedPages v_pages =
      make_pages(ctx, count, attention_page_bytes(dims.kv_heads, v_width, DType::kF32));
  const auto sequences = whole_sequences(batch, k_pages, v_pages);
  append(ctx, dims, sequences, k.f32(), v.defined() ? v.f32() : nullptr);
  Tensor y = ctx.empty({batch.tokens(), dims.heads * dims.value_dim});
  Tensor lse;
  if (ctx.tape() != nullptr) lse = ctx.empty({batch.tokens(), dims.heads});
  attend(ctx, dims, sequences, q.f32(), y.f32(), lse.defined() ? lse.f32() : nullptr);
  if (Tape* tape = ctx.tape(); tape != nullptr && !dims.values_in_keys) {
    const Tensor kept = y;  // without the identity that `record` gives the output
    tape->record({q, k, v}, y,
                 [dims, batch, q, k, v, kept, lse](Context& inner, const Tensor& dy) -> Grads {
                   return whole_vjp(inner, dims, batch, q, k, v, kept, lse, dy);
                 });
  }
  return y;
}

Tensor attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                 const SequenceBatch& batch, const AttentionOptions& options,
                 std::span<const KvCache> caches) {
  AttentionDims dims = make_dims(q, k, v, batch, options);
  check(static_cast<int64_t>(caches.size()) == batch.sequences(),
        "attention: there are {} caches, want {}", caches.size(), batch.sequences());
  check(ctx.tape() == nullptr || !(Tape::tracks(q) || Tape::tracks(k) || Tape::tracks(v)),
        "attention: a cached call has no gradient; leave the caches out in training");
  if (!caches.empty()) dims.page_dtype = caches[0].dtype;
  check(dims.page_dtype == DType::kF32 || dims.page_dtype == DType::kBF16,
        "attention: the cache holds {}, want f32 or bf16", to_string(dims.page_dtype));
  std::vector<AttentionSequence> sequences;
  std::vector<StagedCache> staged(caches.size());
  for (size_t s = 0; s < caches.size(); ++s) {
    check_cache(dims, batch, static_cast<int64_t>(s), caches[s]);
    sequences.push_back({.row = batch.offsets[s],
                         .length = batch.length(static_cast<int64_t>(s)),
                         .start = batch.starts[s],
                         .k_pages = caches[s].k.pages,
                         .v_pages = caches[s].v.pages,
                         .pages = caches[s].k.count});
    if (overwrites_needed_keys(dims, sequences[s])) staged[s] = stage(ctx, dims, sequences[s]);
  }
  append(ctx, dims, sequences, k.f32(), v.defined() ? v.f32() : nullptr);
  Tensor y = ctx.empty({batch.tokens(), dims.heads * dims.value_dim});
  attend(ctx, dims, sequences, q.f32(), y.f32(), nullptr);
  for (size_t s = 0; s < caches.size(); ++s) {
    if (!staged[s].k_pages.empty()) unstage(ctx, dims, staged[s], caches[s]);
  }
  return y;
}

}  // namespace braid
