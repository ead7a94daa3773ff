#pragma once

#include "braid/infer/session.h"
#include "braid/model/stack_spec.h"

namespace braid::fuzz {

/// The model whose sessions lie in corpus/session, as make_session_seed.cc wrote them.
struct SessionModel {
  Context ctx{{.threads = 1}};
  Stack stack;
  SessionModel() : stack(config()) { stack.initialize(ctx, Rng(1)); }
  Session session() { return Session(stack, /*fingerprint=*/1, ctx); }

  static ModelConfig config() {
    ModelConfig config;
    config.width = 16;
    config.vocab = 32;
    config.tied = true;
    config.sublayers = parse_stack("mamba2:state=4,head=8 swa:8,heads=2 attn:heads=2");
    return config;
  }
};

}  // namespace braid::fuzz
