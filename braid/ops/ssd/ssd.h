#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct SsdOptions {
  int64_t heads = 0;     // H
  int64_t head_dim = 0;  // P
  int64_t groups = 1;    // G; head h reads B and C of group floor(h G / H)
  int64_t state = 0;     // N
  float dt_min = 0.0f;   // bounds of the step, after the softplus
  float dt_max = std::numeric_limits<float>::infinity();
  int64_t chunk = 64;  // tokens to a cell of the chunked form, counted from a sequence's start
};

/// All float32; the rows of x, b, c and dt_raw may be strided.
struct SsdInputs {
  Tensor x;        // (T, H P)
  Tensor b, c;     // (T, G N)
  Tensor dt_raw;   // (T, H)
  Tensor dt_bias;  // (H)
  Tensor a_log;    // (H), A = -exp(a_log)
  Tensor d;        // (H), or absent
};

struct SsdResult {
  Tensor y;            // (T, H P)
  Tensor final_state;  // (S, H, P, N)
};

/// The selective state space of Mamba-2, per head:
///
///   dt_t = clamp(softplus(dt_raw_t + dt_bias), dt_min, dt_max)
///   S_t  = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T                      S (P, N)
///   y_t  = S_t C_t + D x_t
///
/// over a packed batch of T tokens in S sequences; sequence s starts from initial[s] (zero where
/// `initial` is absent) and may be empty. Nothing aliases. form() chooses recurrent or chunked
/// (kParallel is chunked); kAuto is recurrent forward and chunked in the vjp. In the recurrent form
/// a token's bits depend neither on the rest of the batch nor on where the sequence is cut.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state. At the bounds of the
/// clamp the gradient is zero.
///
/// Source: Dao & Gu, arXiv:2405.21060; parameters as in state-spaces/mamba `Mamba2`. Derivations of
/// the chunked form and of the vjp: README.md beside this file.
SsdResult ssd(Context& ctx, const SsdInputs& inputs, const Tensor& initial,
              const SequenceBatch& batch, const SsdOptions& options);

/// The same for inference: state[s] (H, P, N) float32 is read and overwritten, nothing of it is
/// copied. Refuses a context with a tape.
Tensor ssd_in_place(Context& ctx, const SsdInputs& inputs, std::span<float* const> state,
                    const SequenceBatch& batch, const SsdOptions& options);

}  // namespace braid
