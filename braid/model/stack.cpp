#include "braid/model/stack.h"

#include <algorithm>
#include <cmath>

#include "braid/model/adaptation.h"
#include "braid/model/checkpoint.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/embedding/embedding.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

// The segment of a branch in parameter names: its registry name, numbered when it is not the first.
std::string branch_segment(const ParallelSpec& spec, size_t branch) {
  const std::string& name = spec.branches[branch].name;
  size_t before = 0;
  for (size_t i = 0; i < branch; ++i) before += spec.branches[i].name == name;
  return before == 0 ? name : name + "_" + std::to_string(before);
}

// What such a sublayer leaves on the stream for the next one.
constexpr std::string_view kFeed = "feed";

// Whether sublayer i feeds the next one; it must then be there, and stand alone.
bool feeds_next(const ModelConfig& config, size_t i) {
  const ParallelSpec& spec = config.sublayers[i];
  for (const SublayerSpec& branch : spec.branches) {
    const SublayerEntry* entry = find_sublayer(branch.name);
    if (entry == nullptr || !entry->traits.feeds_next) continue;
    check(spec.branches.size() == 1, "stack: column {}: {} stands beside others, want it alone",
          branch.column, branch.name);
    check(i + 1 < config.sublayers.size(),
          "stack: column {}: {} comes last, want a sublayer after it that takes its output",
          branch.column, branch.name);
    return true;
  }
  return false;
}

// What the outputs of all branches of sublayer i are added to.
ResidualSource residual_source(const ModelConfig& config, size_t i, bool feeds_next) {
  std::optional<ResidualSource> source;
  for (const SublayerSpec& branch : config.sublayers[i].branches) {
    SpecOptions options(branch);
    const ResidualSource own = read_residual(options);
    check(!feeds_next || own == ResidualSource{},
          "stack: column {}: {} is added to nothing, want no residual or residual_scale",
          branch.column, branch.name);
    check(!source || own == *source,
          "stack: column {}: {} has another residual or residual_scale than the branch before it, "
          "want the same",
          branch.column, branch.name);
    source = own;
  }
  return source.value_or(ResidualSource{});
}

}  // namespace

Stack::Stack(const ModelConfig& config, const StackOptions& options)
    : config_(config), options_(options) {
  const int64_t V = config_.vocab, D = config_.width;
  embedding_ = {.name = "embedding.weight",
                .shape = {V, D},
                .matrix = true,
                .decay = false,
                // Where it is normalised, only its directions count.
                .init = config_.embedding_norm ? init_uniform(-1e-4f, 1e-4f) : init_normal(0.02f)};
  parameters_.push_back({embedding_.name, &embedding_});
  if (config_.embedding_norm) {
    embedding_norm_ = Norm("embedding_norm", D, config_.norm, config_.norm_eps);
    std::vector<Parameter*> of_norm;
    embedding_norm_.collect(of_norm);
    for (Parameter* p : of_norm) parameters_.push_back({p->name, p});
  }
  const DType matrix_dtype = options_.matrix_dtype.value_or(config_.dtype);
  sublayers_.reserve(config_.sublayers.size());
  std::map<std::string, int64_t, std::less<>> of_kind, so_far;
  std::map<std::string, std::shared_ptr<void>, std::less<>> shared;
  for (const ParallelSpec& spec : config_.sublayers) {
    for (const SublayerSpec& branch : spec.branches) ++of_kind[branch.name];
  }
  for (size_t i = 0; i < config_.sublayers.size(); ++i) {
    const ParallelSpec& spec = config_.sublayers[i];
    const std::string path = "sublayers." + std::to_string(i) + ".";
    SublayerConfig sublayer{
        .width = D,
        .norm_eps = config_.norm_eps,
        .state_dtype = matrix_dtype == DType::kBF16 ? DType::kBF16 : DType::kF32,
        .index = static_cast<int64_t>(i),
        .count = static_cast<int64_t>(config_.sublayers.size()),
        .shared = &shared};
    Residual& residual = sublayers_.emplace_back();
    residual.feeds_next = feeds_next(config_, i);
    residual.source = residual_source(config_, i, residual.feeds_next);
    if (!residual.feeds_next) {
      residual.norm = Norm("norm", D, config_.norm, config_.norm_eps);
      std::vector<Parameter*> of_norm;
      residual.norm.collect(of_norm);
      for (Parameter* p : of_norm) parameters_.push_back({path + p->name, p});
    }
    for (size_t b = 0; b < spec.branches.size(); ++b) {
      sublayer.ordinal = so_far[spec.branches[b].name]++;
      sublayer.of_kind = of_kind[spec.branches[b].name];
      residual.branches.push_back(make_sublayer(spec.branches[b], sublayer));
      residual.names.push_back(spec.branches[b].name);
      const std::string prefix = path + branch_segment(spec, b) + ".";
      for (Parameter* p : residual.branches.back()->parameters()) {
        parameters_.push_back({prefix + p->name, p});
      }
    }
  }
  final_norm_ = Norm("final_norm", D, config_.norm, config_.norm_eps);
  std::vector<Parameter*> of_norm;
  final_norm_.collect(of_norm);
  for (Parameter* p : of_norm) parameters_.push_back({p->name, p});
  if (!config_.tied) {
    head_ = {.name = "head.weight",
             .shape = {V, D},
             .matrix = true,
             .decay = true,
             .init = projection_init(D)};
    parameters_.push_back({head_.name, &head_});
  }
  // Identities for the tape: fixed for the life of the stack, below Tape::kFirstId.
  uint64_t id = 0;
  for (auto& [name, parameter] : parameters_) {
    parameter->name = name;
    ++id;
    if (options_.trainable && !parameter->frozen) parameter->value.set_grad_id(id);
  }
}

void Stack::load(Context& ctx, const Checkpoint& checkpoint, const ParameterFilter& filter) {
  load(
      ctx,
      [&](const std::string& name, const Shape& shape) { return checkpoint.sources(name, shape); },
      filter);
  checkpoint.expect_all_used();
}

void Stack::load(Context& ctx, const ParameterSource& source, const ParameterFilter& filter) {
  const ParameterOptions options{.matrix_dtype = options_.matrix_dtype.value_or(config_.dtype),
                                 .trainable = options_.trainable};
  for (auto& [name, parameter] : parameters_) {
    const std::vector<Tensor> sources = source(name, parameter->shape);
    if (!filter || filter(name)) load_parameter(ctx, *parameter, sources, options);
  }
}

void Stack::initialize(Context& ctx, const Rng& rng, const ParameterFilter& filter) {
  const ParameterOptions options{.matrix_dtype = options_.matrix_dtype.value_or(DType::kF32),
                                 .trainable = options_.trainable};
  uint64_t stream = 0;
  for (auto& [name, parameter] : parameters_) {
    const Rng of_parameter = rng.fork(stream++);
    if (!filter || filter(name)) initialize_parameter(ctx, *parameter, of_parameter, options);
  }
}

void Stack::repack(Context& ctx) {
  for (auto& [name, parameter] : parameters_) {
    if (parameter->matrix) parameter->weight.repack(ctx);
  }
}

void Stack::after_step(Context& ctx, const ExpertLoads& loads) {
  for (const Residual& residual : sublayers_) {
    for (const auto& branch : residual.branches) branch->after_step(ctx, loads);
  }
}

void Stack::check_batch(std::span<const int32_t> tokens, const SequenceBatch& batch,
                        const ForwardOptions& options) const {
  check(static_cast<int64_t>(tokens.size()) == batch.tokens(),
        "stack: {} tokens, want the {} of the batch", tokens.size(), batch.tokens());
  for (const int32_t token : tokens) {
    check(0 <= token && token < config_.vocab, "stack: token {}, want 0..{}", token,
          config_.vocab - 1);
  }
  check(options.adaptation == nullptr || options.carried == nullptr,
        "stack: carried tensors, want states where the head adapts");
  if (options.carried != nullptr) {
    check(options.states.empty(), "stack: both states and carried tensors, want one of them");
    check(options.carried->empty() || options.carried->size() == sublayers_.size(),
          "stack: carried tensors of {} sublayers, want {}", options.carried->size(),
          sublayers_.size());
  }
  if (options.states.empty()) return;
  check(static_cast<int64_t>(options.states.size()) == batch.sequences(),
        "stack: {} states for {} sequences", options.states.size(), batch.sequences());
  for (size_t s = 0; s < options.states.size(); ++s) {
    check(options.states[s]->position() == batch.starts[s],
          "stack: sequence {} starts at {}, its state is at {}", s, batch.starts[s],
          options.states[s]->position());
  }
}

Tensor Stack::run_sublayer(Context& ctx, size_t index, const Tensor& h, Stream& stream,
                           const LayerState* state, const SublayerWatch* watch) const {
  const Residual& residual = sublayers_[index];
  const bool fed = index > 0 && sublayers_[index - 1].feeds_next;
  Tensor x = fed ? add(ctx, h, stream.value(kFeed)) : h;
  if (!residual.feeds_next) x = residual.norm.forward(ctx, x);
  if (watch != nullptr && *watch) (*watch)(index, x);
  if (residual.feeds_next) {
    stream.publish(kFeed, residual.branches[0]->forward(ctx, x, stream, state));
    return h;
  }
  Tensor y = residual.source.normed ? x : h;
  if (residual.source.scale != 1) y = scale(ctx, y, residual.source.scale);
  size_t offset = 0;
  for (const auto& branch : residual.branches) {
    std::optional<LayerState> of_branch;
    if (state != nullptr) of_branch.emplace(state->branch(offset));
    offset += branch->state_spec().size();
    y = add(ctx, y, branch->forward(ctx, x, stream, of_branch ? &*of_branch : nullptr));
  }
  return y;
}

// The sublayer as a pure function of the hidden rows, of what was published before it and of the
// tensors of its state.
Tensor Stack::recompute_sublayer(Context& ctx, size_t index, const Tensor& h, Stream& stream,
                                 SlotTensors* carried) const {
  std::vector<Tensor> inputs{h};
  std::vector<std::string> names;
  for (const auto& [name, tensor] : stream.published()) {
    names.push_back(name);
    inputs.push_back(tensor);
  }
  if (carried != nullptr) {
    inputs.insert(inputs.end(), carried->initial.begin(), carried->initial.end());
  }
  // The closure outlives this call, so it holds its own batch; what it publishes is the same each
  // time it runs.
  auto fresh = std::make_shared<std::vector<std::string>>();
  const auto body = [this, index, names, fresh, carries = carried != nullptr,
                     options = stream.options(), batch = stream.batch()](
                        Context& inner, const std::vector<Tensor>& given) mutable {
    Stream again(batch, options);
    options.loads = nullptr;  // the second run is the same tokens
    for (size_t i = 0; i < names.size(); ++i) again.publish(names[i], given[i + 1]);
    const auto initial = given.begin() + 1 + std::ssize(names);
    SlotTensors tensors{.initial = {initial, given.end()}, .last = {}};
    const LayerState state(tensors, batch);
    std::vector<Tensor> outputs{
        run_sublayer(inner, index, given[0], again, carries ? &state : nullptr)};
    fresh->clear();
    for (const auto& [name, tensor] : again.published()) {
      const auto before = std::ranges::find(names, name);
      if (before != names.end() &&
          given[static_cast<size_t>(before - names.begin()) + 1].raw() == tensor.raw()) {
        continue;
      }
      fresh->push_back(name);
      outputs.push_back(tensor);
    }
    outputs.insert(outputs.end(), tensors.last.begin(), tensors.last.end());
    return outputs;
  };
  const std::vector<Tensor> outputs = recompute(ctx, std::move(inputs), body);
  for (size_t i = 0; i < fresh->size(); ++i) stream.publish((*fresh)[i], outputs[i + 1]);
  if (carried != nullptr) {
    carried->last.assign(outputs.begin() + 1 + std::ssize(*fresh), outputs.end());
  }
  return outputs[0];
}

Tensor Stack::forward(Context& ctx, std::span<const int32_t> tokens, const SequenceBatch& batch,
                      const ForwardOptions& options) const {
  check_batch(tokens, batch, options);
  check(ctx.tape() == nullptr || options.states.empty(),
        "stack: states are overwritten, want carried tensors under a tape");
  check(ctx.tape() == nullptr || !options.watch, "stack: watched under a tape, want no tape");
  const bool carries = options.carried != nullptr, streams = carries || !options.states.empty();
  if (carries && options.carried->empty()) options.carried->resize(sublayers_.size());
  // Rotary scales that depend on the length are fixed by the declared context once pieces are read.
  Stream stream(batch, {.rope_context = streams ? config_.max_context : 0,
                        .noise = options.noise,
                        .loads = options.loads,
                        .expert_host = options.expert_host});

  Tensor h = embedding(ctx, tokens, embedding_.weight);
  if (config_.embedding_scale != 1.0) {
    h = scale(ctx, h, static_cast<float>(config_.embedding_scale));
  }
  if (config_.embedding_norm) h = embedding_norm_.forward(ctx, h);
  stream.publish(Stream::kEmbedding, h);
  for (size_t i = 0; i < sublayers_.size(); ++i) {
    SlotTensors* carried = carries ? &(*options.carried)[i] : nullptr;
    const LayerState state =
        carries ? LayerState(*carried, batch) : LayerState(options.states, i, batch);
    h = ctx.tape() != nullptr && options_.recompute
            ? recompute_sublayer(ctx, i, h, stream, carried)
            : run_sublayer(ctx, i, h, stream, streams ? &state : nullptr, &options.watch);
  }
  Tensor logits;
  if (options.adaptation != nullptr) {
    const LayerState state(options.states, sublayers_.size(), batch);
    logits = options.adaptation->forward(ctx, final_norm_.forward(ctx, h), tokens, batch,
                                         options.rows, streams ? &state : nullptr);
  } else {
    if (options.rows) h = gather_rows(ctx, h, *options.rows);
    logits = linear(ctx, final_norm_.forward(ctx, h), head());
    if (config_.logit_scale != 1.0) {
      logits = scale(ctx, logits, static_cast<float>(config_.logit_scale));
    }
  }
  for (size_t s = 0; s < options.states.size(); ++s) {
    options.states[s]->advance(batch.length(static_cast<int64_t>(s)));
  }
  return logits;
}

void Stack::check_causal(std::string_view who) const {
  for (size_t i = 0; i < sublayers_.size(); ++i) {
    for (const std::string& name : sublayers_[i].names) {
      check(find_sublayer(name)->traits.causal,
            "{}: sublayer {}, {}, sees the tokens that are to be predicted, want causal sublayers",
            who, i, name);
    }
  }
}

State Stack::make_state(const Context& ctx, const Adaptation* adaptation) const {
  for (size_t i = 0; i < sublayers_.size(); ++i) {
    for (const std::string& name : sublayers_[i].names) {
      check(find_sublayer(name)->traits.streams, ErrorKind::kUnsupported,
            "stack: sublayer {}, {}, sees whole sequences, want sublayers that carry a state", i,
            name);
    }
  }
  std::vector<StateSpec> specs = state_specs();
  if (adaptation != nullptr) specs.push_back(adaptation->state_spec());
  return State(ctx.shared_api(), std::move(specs));
}

std::vector<StateSpec> Stack::state_specs() const {
  std::vector<StateSpec> specs;
  for (const Residual& residual : sublayers_) {
    StateSpec& spec = specs.emplace_back();
    for (const auto& branch : residual.branches) {
      for (SlotSpec& slot : branch->state_spec()) spec.push_back(std::move(slot));
    }
  }
  return specs;
}

int64_t Stack::parameter_count() const {
  int64_t n = 0;
  for (const auto& [name, parameter] : parameters_) n += parameter->shape.count();
  return n;
}

int64_t Stack::active_parameter_count() const {
  double n = 0;
  for (const auto& [name, parameter] : parameters_) {
    n += parameter->active * static_cast<double>(parameter->shape.count());
  }
  return std::llround(n);
}

int64_t Stack::weight_bytes() const {
  const DType matrix = options_.matrix_dtype.value_or(config_.dtype);
  int64_t bytes = 0;
  for (const auto& [name, parameter] : parameters_) {
    bytes += parameter->shape.count() * static_cast<int64_t>(size_of(dtype_of(*parameter, matrix)));
  }
  return bytes;
}

double Stack::matmul_flops() const {
  double flops = 2.0 * static_cast<double>(config_.vocab * config_.width);
  for (const Residual& residual : sublayers_) {
    for (const auto& branch : residual.branches) flops += branch->matmul_flops();
  }
  return flops;
}

}  // namespace braid
