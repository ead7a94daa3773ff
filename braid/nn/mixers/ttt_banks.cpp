#include "braid/nn/mixers/ttt_banks.h"

#include <algorithm>

#include "braid/ops/view/view.h"

namespace braid {
namespace {

// The lives of both banks that a batch touches, each a sequence of the op's batch.
struct Lives {
  SequenceBatch batch;
  std::vector<int64_t> rows;     // of the inputs, by row of the op
  std::vector<int64_t> outputs;  // row of the op whose output a token takes
  std::vector<int64_t> bank;     // 2 s + b, by life
  std::vector<int64_t> last;     // the life that bank 2 s + b is in after the batch
};

// How long a bank has lived when it reads token t.
int64_t age(int64_t t, int64_t bank, int64_t horizon) {
  const int64_t first = bank * horizon / 2;
  return t < first ? t : (t - first) % horizon;
}

// The bank whose output token t takes.
int64_t older(int64_t t, int64_t horizon) {
  return t >= horizon && t / (horizon / 2) % 2 == 0 ? 1 : 0;
}

Lives lives_of(const SequenceBatch& batch, int64_t horizon) {
  Lives lives;
  lives.outputs.resize(static_cast<size_t>(batch.tokens()));
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t row = batch.offsets[static_cast<size_t>(s)];
    const int64_t start = batch.starts[static_cast<size_t>(s)], length = batch.length(s);
    for (int64_t b = 0; b < 2; ++b) {
      int64_t at = 0;
      do {
        const int64_t lived = age(start + at, b, horizon);
        // The second bank's first life is half as long.
        const int64_t whole = start + at < b * horizon / 2 ? horizon / 2 : horizon;
        const int64_t count = std::min(length - at, whole - lived);
        for (int64_t i = at; i < at + count; ++i) {
          if (older(start + i, horizon) == b) {
            lives.outputs[static_cast<size_t>(row + i)] = std::ssize(lives.rows);
          }
          lives.rows.push_back(row + i);
        }
        lives.batch.add(count, lived);
        lives.bank.push_back(2 * s + b);
        at += count;
      } while (at < length);
      lives.last.push_back(lives.batch.sequences() - 1);
    }
  }
  return lives;
}

// Every life's state before its first row: of a life that begins with the batch, not read.
Tensor states_before(Context& ctx, const Lives& lives, const Tensor& initial) {
  if (!initial.defined()) return {};
  const int64_t banks = 2 * initial.dim(0);
  const Tensor flat = reshape(ctx, initial, {banks, initial.count() / banks});
  const Tensor rows = gather_rows(ctx, flat, lives.bank);
  return reshape(ctx, rows, {rows.dim(0), initial.dim(2), initial.dim(3)});
}

struct Banks {
  Tensor y, final_state;
};

Banks run(Context& ctx, const TttInputs& in, const Tensor& initial, const Lives& lives,
          const TttOptions& options) {
  const TttResult result = ttt(ctx, in, states_before(ctx, lives, initial), lives.batch, options);
  const int64_t H = options.heads, size = ttt_state_size(options);
  const Tensor flat = reshape(ctx, result.final_state, {lives.batch.sequences(), H * size});
  const Tensor last = gather_rows(ctx, flat, lives.last);
  return {.y = result.y, .final_state = reshape(ctx, last, {last.dim(0) / 2, 2, H, size})};
}

// A bank's block carries its first life in and its last one out; they may be in work at once.
Tensor run_in_place(Context& ctx, const TttInputs& in, std::span<float* const> blocks,
                    const Lives& lives, const TttOptions& options) {
  const int64_t size = options.heads * ttt_state_size(options);
  const int64_t count = lives.batch.sequences();
  Tensor scratch = ctx.empty({count, size});
  std::vector<float*> states;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bank = lives.bank[static_cast<size_t>(i)];
    float* block = blocks[static_cast<size_t>(bank / 2)] + bank % 2 * size;
    if (lives.last[static_cast<size_t>(bank)] == i) {
      states.push_back(block);
      continue;
    }
    float* copy = scratch.f32() + i * size;
    if (lives.batch.starts[static_cast<size_t>(i)] > 0) {
      ctx.api().copy(copy, block, static_cast<size_t>(size) * sizeof(float));
    }
    states.push_back(copy);
  }
  return ttt_in_place(ctx, in, states, lives.batch, options);
}

}  // namespace

Tensor ttt_banks(Context& ctx, const TttInputs& inputs, const LayerState* state, size_t slot,
                 const SequenceBatch& batch, const TttOptions& options, int64_t horizon) {
  const Lives lives = lives_of(batch, horizon);
  TttInputs in = inputs;
  for (Tensor* x : {&in.q, &in.k, &in.v, &in.lr}) *x = gather_rows(ctx, *x, lives.rows);
  const Tensor y = through_slot(
      state, slot, [&](const Tensor& initial) { return run(ctx, in, initial, lives, options); },
      [&](std::span<float* const> blocks) {
        return run_in_place(ctx, in, blocks, lives, options);
      });
  return gather_rows(ctx, y, lives.outputs);
}

}  // namespace braid
