// A session file of any content is loaded whole or refused with an Error; what was loaded can go
// on.

#include "braid/infer/session.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "braid/model/stack_spec.h"

namespace {

// The model whose sessions lie in the corpus: seeds are made by tests/fuzz/make_session_seed.cpp.
struct Target {
  braid::Context ctx{{.threads = 1}};
  braid::Stack stack;
  Target() : stack(config()) { stack.initialize(ctx, braid::Rng(1)); }
  static braid::ModelConfig config() {
    braid::ModelConfig config;
    config.width = 16;
    config.vocab = 32;
    config.tied = true;
    config.sublayers = braid::parse_stack("mamba2:state=4,head=8 swa:8,heads=2 attn:heads=2");
    return config;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Target target;
  const int fd = memfd_create("session", 0);
  if (fd < 0 || write(fd, data, size) != static_cast<ssize_t>(size)) return 0;
  try {
    braid::Session session(target.stack, 1, target.ctx);
    session.load("/proc/self/fd/" + std::to_string(fd));
    if (session.position() < 1 << 20) {
      const int32_t token = 3;
      session.append(target.ctx, std::span(&token, 1));
    }
  } catch (const braid::Error&) {
  }
  close(fd);
  return 0;
}
