#include "braid/infer/session.h"

#include <algorithm>
#include <cmath>

#include "braid/core/error.h"

namespace braid {
namespace {

constexpr int64_t kMarkEvery = 16;

// FNV-1a over the token's four bytes.
uint64_t mix(uint64_t hash, int32_t token) {
  for (int shift = 0; shift < 32; shift += 8) {
    hash = (hash ^ ((static_cast<uint32_t>(token) >> shift) & 0xffu)) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace

Session::Session(const Stack& stack, uint64_t fingerprint, const Context& ctx,
                 const SessionOptions& options)
    : stack_(&stack),
      fingerprint_(fingerprint),
      options_(options),
      state_(stack.make_state(ctx, options.adaptation)),
      hash_(0xcbf29ce484222325u) {
  check(options.piece >= 1, "session: piece of {} tokens, want at least 1", options.piece);
  check(0 <= options.rollback_tokens && options.rollback_tokens <= kMarkEvery,
        "session: rollback_tokens {}, want 0..{}", options.rollback_tokens, kMarkEvery);
  if (options_.rollback_tokens > 0) marks_.push_back({state_.mark(), hash_, logits_});
}

void Session::append(Context& ctx, std::span<const int32_t> tokens) {
  const int64_t vocab = stack_->config().vocab;
  for (const int32_t token : tokens) {
    check(0 <= token && token < vocab, "session: token {}, want 0..{}", token, vocab - 1);
  }
  // Pieces end on multiples of the piece length, counted from the start of the sequence. With
  // rollback they also end on every mark from the youngest that the oldest token to return to
  // needs.
  const int64_t end = position() + static_cast<int64_t>(tokens.size());
  const int64_t mark_at = (end - options_.rollback_tokens) / kMarkEvery * kMarkEvery;
  while (!tokens.empty()) {
    int64_t stop = (position() / options_.piece + 1) * options_.piece;
    if (options_.rollback_tokens > 0) {
      const int64_t next_mark = (position() / kMarkEvery + 1) * kMarkEvery;
      stop = std::min(stop, std::max(next_mark, mark_at));
    }
    const int64_t n = std::min(stop, end) - position();
    read(ctx, tokens.first(static_cast<size_t>(n)));
    tokens = tokens.subspan(static_cast<size_t>(n));
  }
}

void Session::read(Context& ctx, std::span<const int32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  State* state = &state_;
  const Tensor logits = stack_->forward(ctx, tokens, SequenceBatch::single(length, position()),
                                        {.states = std::span(&state, 1),
                                         .adaptation = options_.adaptation,
                                         .rows = std::vector<int64_t>{length - 1}});
  const Tensor host = ctx.to_host(logits);
  logits_.assign(host.f32(), host.f32() + host.count());
  remember(tokens);
}

void Session::remember(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) hash_ = mix(hash_, token);
  if (options_.rollback_tokens == 0) return;
  recent_.insert(recent_.end(), tokens.begin(), tokens.end());
  if (static_cast<int64_t>(recent_.size()) > kMaxReplay) {
    recent_.erase(recent_.begin(), recent_.end() - kMaxReplay);
  }
  if (position() % kMarkEvery == 0) {
    marks_.push_back({state_.mark(), hash_, logits_});
    drop_old_marks();
  }
}

// Keeps the youngest mark that is at least rollback_tokens old, and all younger ones.
void Session::drop_old_marks() {
  const int64_t oldest = position() - options_.rollback_tokens;
  while (marks_.size() > 1 && marks_[1].state.position <= oldest) marks_.erase(marks_.begin());
}

int64_t Session::generate(Context& ctx, Sampler& sampler, int64_t max_tokens,
                          const std::function<bool(int32_t)>& on_token) {
  check(max_tokens <= 0 || !logits_.empty(),
        "session: nothing has been read yet, want at least one token to continue from");
  int64_t made = 0;
  while (made < max_tokens) {
    const std::span<const float> all = logits_;
    const auto drawn = static_cast<size_t>(options_.drawn_vocab);
    const int32_t token = sampler.sample(drawn > 0 && drawn < all.size() ? all.first(drawn) : all);
    const bool go_on = on_token(token);
    ++made;
    read(ctx, std::span(&token, 1));
    if (!go_on) break;
  }
  return made;
}

void Session::rollback(Context& ctx, int64_t tokens) {
  check(0 <= tokens && tokens <= options_.rollback_tokens,
        "session: rollback of {} tokens, want 0..{}", tokens, options_.rollback_tokens);
  if (tokens == 0) return;
  const int64_t target = position() - tokens;
  auto mark = std::find_if(marks_.rbegin(), marks_.rend(),
                           [&](const Mark& m) { return m.state.position <= target; });
  check(mark != marks_.rend(),
        "session: rollback of {} tokens, want at most the {} that it still remembers", tokens,
        position() - marks_.front().state.position);
  const int64_t from = mark->state.position;
  // Tokens from the mark to the target are read again; the same bits follow, by the law of forms.
  std::vector<int32_t> again(recent_.end() - (position() - from), recent_.end() - tokens);
  recent_.resize(recent_.size() - static_cast<size_t>(position() - from));
  state_.restore(mark->state);
  hash_ = mark->hash;
  logits_ = mark->logits;
  marks_.erase(mark.base(), marks_.end());
  if (!again.empty()) read(ctx, again);
}

}  // namespace braid
