// A program outside the tree: builds a stack from a spec and runs one forward pass.

#include <cstdio>
#include <vector>

#include "braid/braid.h"

int main() {
  braid::Context ctx({.threads = 1});
  braid::ModelConfig config;
  config.width = 64;
  config.vocab = 256;
  config.sublayers = braid::parse_stack("(mamba2:state=16,head=16 swa:32,heads=4 swiglu)x2");
  braid::Stack stack(config);
  stack.initialize(ctx, braid::Rng(1));
  const std::vector<int32_t> tokens{1, 2, 3};
  const braid::Tensor logits = stack.forward(ctx, tokens, braid::SequenceBatch::single(3));
  std::printf("parameters: %lld, logits (%lld, %lld)\n",
              static_cast<long long>(stack.parameter_count()),
              static_cast<long long>(logits.dim(0)), static_cast<long long>(logits.dim(1)));
  return logits.dim(0) == 3 && logits.dim(1) == 256 ? 0 : 1;
}
