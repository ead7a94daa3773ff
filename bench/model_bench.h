#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "braid/core/context.h"
#include "braid/model/presets.h"
#include "braid/model/stack.h"

namespace braid::bench {

/// Prints prefill of `prompt` tokens and decode of 1 and of 16 sequences together, each beside the
/// floor that weight bytes, state bytes and matrix FLOPs set on this machine.
void bench_inference(Context& ctx, const Stack& stack, const Ceilings& ceilings,
                     int64_t prompt = 2048);
/// The same with random bfloat16 weights.
void bench_inference(Context& ctx, const Preset& preset, const Ceilings& ceilings);

/// Prints a training step of `stack` (forward, backward, update) on `tokens` random tokens in
/// sequences of 512, with its share of the float32 GEMM peak, counting matrix FLOPs only.
void bench_training(Context& ctx, const std::string& stack, int64_t width, int64_t vocab,
                    const Ceilings& ceilings, int64_t tokens = 8192);

}  // namespace braid::bench
