#include "braid/train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "braid/core/error.h"

namespace braid {

namespace {

// What one target that counts adds to the result.
struct Score {
  float loss = 0;
  int32_t correct = 0;
  int64_t position = 0;  // in its sequence
};

std::vector<Score> score(Context& ctx, const Stack& stack, const TrainingBatch& batch,
                         const EvaluateOptions& options) {
  const CrossEntropyResult result = predict(ctx, stack, batch,
                                            {.loads = options.loads,
                                             .expert_host = options.expert_parallel,
                                             .adaptation = options.adaptation,
                                             .watch = options.watch});
  const Tensor losses = ctx.to_host(result.token_losses), hits = ctx.to_host(result.correct);
  std::vector<Score> scores;
  for (int64_t s = 0; s < batch.batch.sequences(); ++s) {
    const int64_t begin = batch.batch.offsets[static_cast<size_t>(s)];
    for (int64_t i = 0; i < batch.batch.length(s); ++i) {
      if (batch.targets[static_cast<size_t>(begin + i)] < 0) continue;
      const auto row = std::ssize(scores);
      scores.push_back({losses.f32()[row], hits.data<int32_t>()[row], i});
    }
  }
  return scores;
}

// All ranks' scores, in the order of their sequences.
std::vector<Score> gather(Transport& transport, const std::vector<Score>& mine) {
  const ReceivedParts all = transport.all_gather(bytes_of(std::span<const Score>(mine)));
  std::vector<Score> scores(all.bytes.size() / sizeof(Score));
  if (!scores.empty()) std::memcpy(scores.data(), all.bytes.data(), all.bytes.size());
  return scores;
}

// The sums of all scores, each one chain, so that they do not depend on how targets were batched.
struct Sums {
  double nats = 0;
  int64_t correct = 0, targets = 0;
  std::vector<Evaluation::Window> windows;

  void add(const Score& s, int64_t width) {
    nats += s.loss;
    correct += s.correct;
    ++targets;
    if (width == 0) return;
    const auto at = static_cast<size_t>(s.position / width);
    if (windows.size() <= at) windows.resize(at + 1);
    windows[at].loss += s.loss;
    ++windows[at].targets;
  }
};

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Context& ctx, const Stack& stack, const EvaluationSet& set,
                    const EvaluateOptions& options) {
  stack.check_causal("evaluation");
  ExpertParallel* host = options.expert_parallel;
  const int ranks = host != nullptr ? host->transport().size() : 1;
  const int rank = host != nullptr ? host->transport().rank() : 0;
  const int64_t total = set.sequences();
  Sums sums;
  for (int64_t next = 0; next < total;) {
    TrainingBatch batch;  // of this rank; every rank takes one in a step, while there are any
    for (int r = 0; r < ranks && next < total; ++r) {
      int64_t tokens = 0;
      do {
        tokens += set.length(next);
        if (r == rank) set.append(next, batch);
        ++next;
      } while (next < total && tokens + set.length(next) <= options.batch_tokens);
    }
    std::vector<Score> scores;
    if (!batch.tokens.empty()) {
      scores = score(ctx, stack, batch, options);
    } else if (host != nullptr) {
      host->idle_pass(ctx);
    }
    if (host != nullptr) {
      scores = gather(host->transport(), scores);
      host->end_step(ctx);
    }
    for (const Score& s : scores) sums.add(s, options.window);
    if (options.progress) options.progress(next, total);
  }
  check(sums.targets > 0, ErrorKind::kFormat, "evaluation: {} has nothing to predict", set.name());
  const auto targets = static_cast<double>(sums.targets);
  Evaluation result{.loss = sums.nats / targets,
                    .accuracy = static_cast<double>(sums.correct) / targets,
                    .targets = sums.targets,
                    .windows = std::move(sums.windows)};
  for (Evaluation::Window& window : result.windows) {
    window.loss /= static_cast<double>(std::max<int64_t>(window.targets, 1));
  }
  result.bytes = set.bytes_per_target() * targets;
  if (result.bytes > 0) result.bits_per_byte = sums.nats / std::numbers::ln2 / result.bytes;
  return result;
}

}  // namespace braid
