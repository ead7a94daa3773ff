#pragma once

// The laws every registered sublayer obeys, as functions that say what broke ("" if nothing did),
// so that the same check can be shown to fail on a sublayer with a planted fault.

#include <memory>
#include <string>

#include "braid/nn/sublayer.h"

namespace braid::test {

/// A sublayer with initialised parameters, and the contexts to run it in.
struct Subject {
  std::unique_ptr<Sublayer> layer;
  SublayerConfig config;
  bool chooses = false;  // Traits::chooses

  /// The parameters that gradients reach.
  std::vector<Parameter*> trained() const;
  /// Stateless run of a packed batch.
  Tensor run(Context& ctx, const Tensor& x, const SequenceBatch& batch) const;
  /// One sequence through a carried state, in pieces of the given lengths.
  Tensor run_pieces(Context& ctx, const Tensor& x, const std::vector<int64_t>& pieces,
                    State& state) const;
  /// A packed batch through a state of tensors.
  Tensor run_tensors(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                     SlotTensors& state) const;
  State make_state(const Context& ctx) const;
};

/// From a registry example such as "swa:24,heads=4", at width 64. Of several sublayers the last is
/// meant, as it is after the others. Every run finds its own x published as RWKV-7's first values.
Subject make_subject(Context& ctx, const std::string& spec, DType state_dtype = DType::kF32,
                     bool trainable = false);

// Each draws its inputs from a fixed seed.
std::string forms_agree(Context& ctx, const Subject& subject);
std::string every_cut(Context& ctx, const Subject& subject, int64_t length);
std::string token_by_token(Context& ctx, const Subject& subject, int64_t length);
std::string causal(Context& ctx, const Subject& subject);
std::string alone_as_in_a_batch(Context& ctx, const Subject& subject);
std::string any_thread_count(const Subject& subject);
std::string survives_storage(Context& ctx, const Subject& subject);
std::string forks_are_independent(Context& ctx, const Subject& subject);
std::string returns_to_a_mark(Context& ctx, const Subject& subject);
std::string reads_no_stale_memory(const Subject& subject);
/// Inputs and parameters, along random directions, against central differences. Rows in which a
/// choice changes along the way are left out, where the sublayer makes choices.
std::string gradients_match_differences(Context& ctx, const Subject& subject);
/// The same with the state that a piece starts from and the one it leaves in the loss.
std::string state_gradients_match_differences(Context& ctx, const Subject& subject);
/// A sequence in pieces, the state handed on, has the outputs and gradients of the whole.
std::string gradients_flow_through_pieces(Context& ctx, const Subject& subject);
/// Recomputing a sublayer in the backward pass changes no gradient.
std::string recompute_changes_nothing(Context& ctx, const Subject& subject);

}  // namespace braid::test
