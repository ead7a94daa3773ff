#include "braid/model/expert_parallel.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "braid/core/error.h"

namespace braid {
namespace {

size_t index(int64_t i) { return static_cast<size_t>(i); }

// "sublayers.3.moe.experts.12.gate_up.weight": prefix "sublayers.3.moe", expert 12, in (or out).
struct ExpertName {
  std::string_view prefix;
  int64_t expert = 0;
  bool out = false;
};

std::optional<ExpertName> parse_expert(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return std::nullopt;
  ExpertName result{.prefix = name.substr(0, at)};
  const std::string_view rest = name.substr(at + kExperts.size());
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), result.expert);
  if (error != std::errc{}) return std::nullopt;
  result.out = std::string_view(end, rest.data() + rest.size()) == ".down.weight";
  return result;
}

template <class T>
void append(std::vector<std::byte>& to, std::span<const T> values) {
  const ByteView bytes = bytes_of(values);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

std::vector<ByteView> views(const std::vector<std::vector<std::byte>>& messages) {
  return {messages.begin(), messages.end()};
}

// What precedes the rows of a parcel.
struct Header {
  int32_t rows = 0, assignments = 0, activation = 0, unused = 0;
};

// A parcel as it arrives.
struct Asked {
  Header header;
  std::vector<int32_t> assignments;
  const std::byte* rows = nullptr;

  Asked(ByteView bytes, int64_t width) {
    const auto wants = [&](size_t size) {
      check(bytes.size() >= size, ErrorKind::kFormat,
            "experts: a message of {} bytes, want at least {}", bytes.size(), size);
    };
    wants(sizeof(Header));
    std::memcpy(&header, bytes.data(), sizeof(Header));
    assignments.resize(2 * static_cast<size_t>(header.assignments));
    const size_t table = assignments.size() * sizeof(int32_t);
    const size_t all =
        static_cast<size_t>(header.rows) * static_cast<size_t>(width) * sizeof(float);
    wants(sizeof(Header) + table + all);
    if (table > 0) std::memcpy(assignments.data(), bytes.data() + sizeof(Header), table);
    rows = bytes.data() + sizeof(Header) + table;
  }
};

}  // namespace

ExpertParallel::ExpertParallel(Transport& transport, const Stack& stack,
                               const ExpertParallelOptions& options)
    : transport_(&transport), options_(options) {
  check(options_.past >= 0 && options_.past < 1, "experts: past {}, want 0 <= past < 1",
        options_.past);
  for (const auto& [name, parameter] : stack.parameters()) {
    const std::optional<ExpertName> found = parse_expert(name);
    if (!found) continue;
    // Parameters come sublayer by sublayer, so layers appear in the order of their ordinals.
    if (layers_.empty() || layers_.back().prefix != found->prefix) {
      layers_.emplace_back().prefix = found->prefix;
    }
    auto& weights = layers_.back().weights;
    if (std::ssize(weights) <= found->expert) weights.resize(index(found->expert) + 1);
    weights[index(found->expert)][found->out ? 1 : 0] = parameter;
  }
  check(!layers_.empty(), "experts: the stack has no sublayer of experts to spread over ranks");
  for (Layer& layer : layers_) {
    const size_t experts = layer.weights.size();
    layer.placement = contiguous_placement(std::ssize(layer.weights), placement_options(layer));
    layer.chosen.assign(experts, 0);
    layer.average.assign(experts, 0.0);
    layer.turn.assign(experts, 0);
  }
}

PlacementOptions ExpertParallel::placement_options(const Layer& layer) const {
  const int64_t ranks = transport_->size();
  const int64_t least = least_slots(std::ssize(layer.weights), ranks);
  return {.workers = ranks,
          .slots = options_.slots > 0 ? options_.slots : least,
          .groups = options_.groups,
          .nodes = options_.nodes};
}

bool ExpertParallel::reads(std::string_view name) const {
  const std::optional<ExpertName> found = parse_expert(name);
  if (!found) return true;
  const auto layer = std::ranges::find(layers_, found->prefix, &Layer::prefix);
  return layer == layers_.end() || layer->placement.holds(transport_->rank(), found->expert);
}

// Which row goes where. Copies of an expert take turns, from one that differs by rank; place (N, k)
// tells where each result will lie among all that come back, rank by rank.
std::vector<ExpertParallel::Parcel> ExpertParallel::share_out(Layer& layer, const Tensor& ids,
                                                              const Tensor& place) {
  const auto experts = std::ssize(layer.weights);
  const int64_t tokens = ids.rows(), slots = ids.dim(1);
  std::vector<Parcel> parcels(index(transport_->size()));
  std::vector<int32_t> worker(index(tokens * slots), -1);
  auto* at = place.data<int32_t>();
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t j = 0; j < slots; ++j) {
      const int32_t id = ids.data<int32_t>()[n * ids.row_stride() + j];
      check(id >= -1 && id < experts, "experts: token {} asks for expert {}, there are {}", n, id,
            experts);
      at[n * slots + j] = -1;
      if (id < 0) continue;
      const std::vector<int64_t>& copies = layer.placement.copies[index(id)];
      const int64_t turn = layer.turn[index(id)]++ + transport_->rank();
      const int64_t to = layer.placement.worker_of(copies[index(turn % std::ssize(copies))]);
      Parcel& parcel = parcels[index(to)];
      if (parcel.tokens.empty() || parcel.tokens.back() != n) parcel.tokens.push_back(n);
      at[n * slots + j] = static_cast<int32_t>(parcel.assignments.size() / 2);
      parcel.assignments.push_back(id);
      parcel.assignments.push_back(static_cast<int32_t>(parcel.tokens.size() - 1));
      worker[index(n * slots + j)] = static_cast<int32_t>(to);
      ++layer.chosen[index(id)];
    }
  }
  std::vector<int32_t> first(parcels.size() + 1, 0);
  for (size_t r = 0; r < parcels.size(); ++r) {
    first[r + 1] = first[r] + static_cast<int32_t>(parcels[r].assignments.size() / 2);
  }
  for (size_t i = 0; i < worker.size(); ++i) {
    if (worker[i] >= 0) at[i] += first[index(worker[i])];
  }
  return parcels;
}

// The results of the rows that others (and this rank) ask for, to each in the order it asked.
std::vector<std::vector<std::byte>> ExpertParallel::serve(Context& ctx, Layer& layer,
                                                          const ReceivedParts& asked) {
  const auto experts = layer.weights.size();
  const int64_t width = layer.weights[0][0]->shape[1];
  const size_t row_bytes = index(width) * sizeof(float);
  std::vector<Asked> parcels;
  std::vector<int64_t> count(experts + 1, 0);
  for (int r = 0; r < transport_->size(); ++r) {
    const Asked& parcel = parcels.emplace_back(asked.from(r), width);
    for (size_t i = 0; i < parcel.assignments.size(); i += 2) {
      const int32_t id = parcel.assignments[i];
      check(0 <= id && index(id) < experts && layer.weights[index(id)][0]->weight.defined(),
            ErrorKind::kFormat,
            "experts: rank {} asks rank {} for expert {} of {}, which it has not", r,
            transport_->rank(), id, layer.prefix);
      check(0 <= parcel.assignments[i + 1] && parcel.assignments[i + 1] < parcel.header.rows,
            ErrorKind::kFormat, "experts: rank {} asks for row {} of {}", r,
            parcel.assignments[i + 1], parcel.header.rows);
      ++count[index(id) + 1];
    }
  }
  std::vector<Expert> hit;
  std::vector<int64_t> offsets{0}, next(experts, 0);  // where the next row of an expert goes
  for (size_t e = 0; e < experts; ++e) {
    next[e] = offsets.back();
    if (count[e + 1] == 0) continue;
    hit.push_back({layer.weights[e][0]->weight, layer.weights[e][1]->weight});
    offsets.push_back(offsets.back() + count[e + 1]);
  }
  const int64_t rows = offsets.back();
  layer.rows += rows;
  std::vector<std::vector<std::byte>> replies(parcels.size());
  if (rows == 0) return replies;

  const Tensor x = ctx.empty({rows, width});
  std::vector<std::vector<int64_t>> lies(parcels.size());  // in x, of each assignment
  for (size_t r = 0; r < parcels.size(); ++r) {
    const Asked& parcel = parcels[r];
    for (size_t i = 0; i < parcel.assignments.size(); i += 2) {
      const int64_t to = next[index(parcel.assignments[i])]++;
      std::memcpy(x.f32() + to * width, parcel.rows + index(parcel.assignments[i + 1]) * row_bytes,
                  row_bytes);
      lies[r].push_back(to);
    }
  }
  // An idle rank does not know the activation and asks for nothing.
  const auto asks = std::ranges::find_if(
      parcels, [](const Asked& parcel) { return parcel.header.assignments > 0; });
  const Tensor y =
      expert_rows(ctx, x, offsets, hit, static_cast<ExpertActivation>(asks->header.activation));
  for (size_t r = 0; r < parcels.size(); ++r) {
    replies[r].resize(lies[r].size() * row_bytes);
    for (size_t i = 0; i < lies[r].size(); ++i) {
      std::memcpy(replies[r].data() + i * row_bytes, y.f32() + lies[r][i] * width, row_bytes);
    }
  }
  return replies;
}

ReceivedParts ExpertParallel::exchange(Context& ctx, Layer& layer, const Tensor& x,
                                       const std::vector<Parcel>& parcels,
                                       ExpertActivation activation) {
  std::vector<std::vector<std::byte>> questions;
  for (const Parcel& parcel : parcels) {
    const Header header{.rows = static_cast<int32_t>(parcel.tokens.size()),
                        .assignments = static_cast<int32_t>(parcel.assignments.size() / 2),
                        .activation = static_cast<int32_t>(activation)};
    std::vector<std::byte>& question = questions.emplace_back();
    append(question, std::span(&header, 1));
    append(question, std::span<const int32_t>(parcel.assignments));
    for (const int64_t n : parcel.tokens) {
      append(question, std::span<const float>(x.f32() + n * x.row_stride(), index(x.dim(1))));
    }
  }
  const ReceivedParts asked = transport_->all_to_all(views(questions));
  const std::vector<std::vector<std::byte>> replies = serve(ctx, layer, asked);
  return transport_->all_to_all(views(replies));
}

Tensor ExpertParallel::evaluate(Context& ctx, int64_t layer, const Tensor& x, const Tensor& ids,
                                const Tensor& weights, ExpertActivation activation) {
  check(ctx.tape() == nullptr, ErrorKind::kUnsupported,
        "experts: spread over ranks they have no gradients");
  check(0 <= layer && layer < std::ssize(layers_), "experts: layer {}, there are {}", layer,
        layers_.size());
  Layer& of = layers_[index(layer)];
  const int64_t width = of.weights[0][0]->shape[1];
  check(x.rank() == 2 && x.dim(1) == width && ids.rank() == 2 && ids.rows() == x.rows() &&
            weights.shape() == ids.shape(),
        "experts: x {}, ids {}, weights {}, want (N, {}), (N, k), (N, k)", to_string(x.shape()),
        to_string(ids.shape()), to_string(weights.shape()), width);
  const Tensor place = ctx.empty(ids.shape(), DType::kI32);
  const std::vector<Parcel> parcels = share_out(of, ids, place);
  const ReceivedParts results = exchange(ctx, of, x, parcels, activation);
  size_t wanted = 0;
  for (const Parcel& parcel : parcels) wanted += parcel.assignments.size() / 2;
  check(results.bytes.size() == wanted * index(width) * sizeof(float), ErrorKind::kFormat,
        "experts: {} bytes of results, want {} rows of {}", results.bytes.size(), wanted, width);
  const Tensor rows = ctx.empty({static_cast<int64_t>(wanted), width});
  if (wanted > 0) std::memcpy(rows.raw(), results.bytes.data(), results.bytes.size());
  return combine_expert_rows(ctx, rows, place, weights);
}

void ExpertParallel::idle_pass(Context& ctx) {
  const std::vector<Parcel> nothing(index(transport_->size()));
  for (Layer& layer : layers_) exchange(ctx, layer, {}, nothing, ExpertActivation::kSwiglu);
}

}  // namespace braid
