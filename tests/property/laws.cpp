#include "tests/property/laws.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "braid/model/stack_spec.h"
#include "braid/nn/mixers/rwkv7.h"
#include "tests/support/bits.h"
#include "tests/support/numeric.h"

namespace braid::test {
namespace {

constexpr int64_t kWidth = 64;

Tensor input(int64_t rows, uint64_t seed) { return randn({rows, kWidth}, seed); }

Tensor rows_of(const Tensor& x, int64_t begin, int64_t end) { return x.slice_rows(begin, end); }

// Compares exactly where bits are promised, else to rounding over `length` terms.
std::string compare(const Tensor& got, const Tensor& want, int64_t length,
                    const std::string& what) {
  const auto a = values(got), b = values(want);
  const double error = max_error(a, b);
  if (bits_are_promised() ? error == 0 : error <= tolerance(DType::kF32, length)) return "";
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) {
      return fmt::format("{}: row {} column {} is {}, want {} (error {:.2e})", what, i / kWidth,
                         i % kWidth, a[i], b[i], error);
    }
  }
  return what + ": sizes differ";
}

Tensor concatenate(const std::vector<Tensor>& parts) {
  std::vector<float> all;
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    for (const double v : values(part)) all.push_back(static_cast<float>(v));
    rows += part.rows();
  }
  return host_tensor(std::move(all), {rows, kWidth});
}

// A matrix that starts at zero would hide what lies before it.
Initializer drawn_where_zero(const Initializer& init, const Parameter& matrix) {
  return [init, columns = matrix.shape[1]](std::span<float> values, const Rng& rng) {
    init(values, rng);
    if (std::ranges::any_of(values, [](float v) { return v != 0; })) return;
    projection_init(columns)(values, rng);
  };
}

// A stream in which earlier sublayers have left what later ones may read.
Stream stream_of(const SequenceBatch& batch, const Tensor& x, int64_t rope_context = 0) {
  Stream stream(batch, {.rope_context = rope_context});
  stream.publish(Stream::kEmbedding, x);
  stream.publish(Rwkv7Mixer::kFirstValues, x);
  return stream;
}

}  // namespace

Subject make_subject(Context& ctx, const std::string& spec, DType state_dtype, bool trainable) {
  const std::vector<ParallelSpec> stack = parse_stack(spec);
  const SublayerSpec& last = stack.back().branches.at(0);
  Subject subject;
  subject.config = {.width = kWidth, .state_dtype = state_dtype, .index = 0, .count = 2};
  for (const ParallelSpec& before : std::span(stack).first(stack.size() - 1)) {
    subject.config.ordinal += before.branches.at(0).name == last.name;
  }
  subject.config.of_kind = subject.config.ordinal + 1;
  subject.layer = make_sublayer(last, subject.config);
  subject.chooses = find_sublayer(last.name)->traits.chooses;
  uint64_t stream = 0;
  for (Parameter* parameter : subject.layer->parameters()) {
    if (trainable && !parameter->frozen) parameter->value.set_grad_id(stream + 1);
    if (parameter->matrix) parameter->init = drawn_where_zero(parameter->init, *parameter);
    initialize_parameter(ctx, *parameter, Rng(5).fork(stream++), {.trainable = trainable});
  }
  return subject;
}

std::vector<Parameter*> Subject::trained() const {
  std::vector<Parameter*> parameters = layer->parameters();
  std::erase_if(parameters, [](const Parameter* p) { return p->frozen; });
  return parameters;
}

Tensor Subject::run(Context& ctx, const Tensor& x, const SequenceBatch& batch) const {
  Stream stream = stream_of(batch, x);
  return layer->forward(ctx, x, stream, nullptr);
}

Tensor Subject::run_tensors(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                            SlotTensors& state) const {
  Stream stream = stream_of(batch, x, 4096);
  const LayerState view(state, batch);
  return layer->forward(ctx, x, stream, &view);
}

State Subject::make_state(const Context& ctx) const {
  return State(ctx.shared_api(), {layer->state_spec()});
}

Tensor Subject::run_pieces(Context& ctx, const Tensor& x, const std::vector<int64_t>& pieces,
                           State& state) const {
  std::vector<Tensor> parts;
  int64_t at = 0;
  for (const int64_t n : pieces) {
    const SequenceBatch batch = SequenceBatch::single(n, state.position());
    const Tensor piece = rows_of(x, at, at + n);
    Stream stream = stream_of(batch, piece, 4096);
    State* states[] = {&state};
    const LayerState view(states, 0, batch);
    parts.push_back(layer->forward(ctx, piece, stream, &view));
    state.advance(n);
    at += n;
  }
  return concatenate(parts);
}

std::string forms_agree(Context& ctx, const Subject& subject) {
  for (const int64_t T : {1, 63, 64, 65, 200}) {
    const Tensor x = input(T, 11);
    const SequenceBatch batch = SequenceBatch::single(T);
    Context recurrent = ctx.with_form(Form::kRecurrent);
    const Tensor want = subject.run(recurrent, x, batch);
    for (const Form form : {Form::kAuto, Form::kChunked, Form::kParallel}) {
      Context other = ctx.with_form(form);
      const double error = max_error(values(subject.run(other, x, batch)), values(want));
      if (!(error <= tolerance(DType::kF32, T))) {
        return fmt::format("form {} at {} tokens: error {:.2e}, want {:.2e}",
                           static_cast<int>(form), T, error, tolerance(DType::kF32, T));
      }
    }
  }
  return "";
}

std::string every_cut(Context& ctx, const Subject& subject, int64_t length) {
  const Tensor x = input(length, 12);
  const Tensor stateless = subject.run(ctx, x, SequenceBatch::single(length));
  State state = subject.make_state(ctx);
  const Tensor whole = subject.run_pieces(ctx, x, {length}, state);
  if (subject.config.state_dtype == DType::kF32) {
    const std::string broken = compare(stateless, whole, length, "without a state");
    if (!broken.empty()) return broken;
  }
  for (int64_t cut = 1; cut < length; ++cut) {
    State pieces = subject.make_state(ctx);
    const Tensor y = subject.run_pieces(ctx, x, {cut, length - cut}, pieces);
    const std::string broken = compare(y, whole, length, fmt::format("cut at {}", cut));
    if (!broken.empty()) return broken;
  }
  return "";
}

std::string token_by_token(Context& ctx, const Subject& subject, int64_t length) {
  const Tensor x = input(length, 13);
  State state = subject.make_state(ctx), steps = subject.make_state(ctx);
  const Tensor whole = subject.run_pieces(ctx, x, {length}, state);
  const Tensor y =
      subject.run_pieces(ctx, x, std::vector<int64_t>(static_cast<size_t>(length), 1), steps);
  return compare(y, whole, length, "token by token");
}

std::string causal(Context& ctx, const Subject& subject) {
  constexpr int64_t T = 90;
  const Tensor x = input(T, 14);
  const Tensor y = subject.run(ctx, x, SequenceBatch::single(T));
  for (const int64_t t : {0, 1, 17, 63, 64, 88}) {
    Tensor moved = ctx.to_host(x);
    for (int64_t j = 0; j < kWidth; ++j) moved.f32()[(t + 1) * kWidth + j] += 1.0f;
    const Tensor z = subject.run(ctx, moved, SequenceBatch::single(T));
    if (!same_bits(rows_of(z, 0, t + 1), rows_of(y, 0, t + 1))) {
      return fmt::format("token {} changes what came before it", t + 1);
    }
    if (same_bits(rows_of(z, t + 1, t + 2), rows_of(y, t + 1, t + 2))) {
      return fmt::format("token {} does not change its own output", t + 1);
    }
  }
  return "";
}

std::string alone_as_in_a_batch(Context& ctx, const Subject& subject) {
  SequenceBatch batch;
  for (const int64_t n : {5, 64, 1, 130, 2, 33}) batch.add(n);
  const Tensor x = input(batch.tokens(), 15);
  const Tensor packed = subject.run(ctx, x, batch);
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t a = batch.offsets[static_cast<size_t>(s)];
    const int64_t b = a + batch.length(s);
    const Tensor alone =
        subject.run(ctx, ctx.to_host(rows_of(x, a, b)), SequenceBatch::single(b - a));
    const std::string broken =
        compare(rows_of(packed, a, b), alone, b - a, fmt::format("sequence {}", s));
    if (!broken.empty()) return broken;
  }
  return "";
}

std::string any_thread_count(const Subject& subject) {
  SequenceBatch batch;
  for (const int64_t n : {70, 3, 140}) batch.add(n);
  const Tensor x = input(batch.tokens(), 16);
  Context one({.threads = 1});
  const Tensor want = subject.run(one, x, batch);
  for (const int threads : {2, 3, 5}) {
    Context many({.threads = threads});
    const std::string broken =
        compare(subject.run(many, x, batch), want, 140, fmt::format("{} threads", threads));
    if (!broken.empty()) return broken;
  }
  return "";
}

std::string survives_storage(Context& ctx, const Subject& subject) {
  constexpr int64_t T = 75, rest = 40;
  const Tensor x = input(T + rest, 17);
  State state = subject.make_state(ctx);
  subject.run_pieces(ctx, x, {T}, state);
  std::vector<std::vector<Tensor>> blocks;
  for (size_t j = 0; j < state.specs()[0].size(); ++j) {
    blocks.emplace_back();
    for (const Tensor& block : state.blocks(0, j)) blocks.back().push_back(ctx.to_host(block));
  }
  State loaded = subject.make_state(ctx);
  loaded.load(state.position(), {blocks});
  const Tensor tail = ctx.to_host(rows_of(x, T, T + rest));
  const Tensor want = subject.run_pieces(ctx, tail, {rest}, state);
  return compare(subject.run_pieces(ctx, tail, {rest}, loaded), want, rest, "loaded state");
}

std::string forks_are_independent(Context& ctx, const Subject& subject) {
  constexpr int64_t T = 75, rest = 30;
  const Tensor x = input(T + rest, 18), other = input(rest, 19);
  State state = subject.make_state(ctx), alone = subject.make_state(ctx);
  subject.run_pieces(ctx, x, {T}, state);
  State fork = state;
  subject.run_pieces(ctx, other, {rest}, fork);
  const Tensor tail = ctx.to_host(rows_of(x, T, T + rest));
  const Tensor y = subject.run_pieces(ctx, tail, {rest}, state);
  const Tensor whole = subject.run_pieces(ctx, x, {T, rest}, alone);
  return compare(y, rows_of(whole, T, T + rest), T + rest, "after the fork went its own way");
}

std::string returns_to_a_mark(Context& ctx, const Subject& subject) {
  // Far enough for a ring to have wrapped.
  constexpr int64_t T = 700, back = kMaxReplay, rest = 20;
  const Tensor x = input(T + rest, 20);
  State state = subject.make_state(ctx), straight = subject.make_state(ctx);
  subject.run_pieces(ctx, x, {T}, state);
  const State::Mark mark = state.mark();
  const Tensor other = input(back, 21);
  subject.run_pieces(ctx, other, {back}, state);
  state.restore(mark);
  const Tensor tail = ctx.to_host(rows_of(x, T, T + rest));
  const Tensor y = subject.run_pieces(ctx, tail, {rest}, state);
  const Tensor whole = subject.run_pieces(ctx, x, {T, rest}, straight);
  return compare(y, rows_of(whole, T, T + rest), T + rest, "after returning to a mark");
}

std::string reads_no_stale_memory(const Subject& subject) {
  constexpr int64_t T = 70;
  const Tensor x = input(T, 22);
  Context clean, poisoned({.poison = true});
  const Tensor want = subject.run(clean, x, SequenceBatch::single(T));
  return compare(subject.run(poisoned, x, SequenceBatch::single(T)), want, T,
                 "with memory full of NaN");
}

}  // namespace braid::test
