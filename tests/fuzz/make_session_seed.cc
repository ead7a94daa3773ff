// Writes the seeds of the session target: make_session_seed DIR. To be run again when the format of
// session files changes.
#include <cstdio>
#include <filesystem>
#include <vector>

#include "tests/fuzz/session_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_session_seed DIR\n");
    return 2;
  }
  braid::fuzz::SessionModel model;
  braid::Session session = model.session();
  const std::filesystem::path dir = argv[1];
  session.save(model.ctx, dir / "new.safetensors");
  for (int32_t token = 0; token < 20; ++token) {
    session.append(model.ctx, std::span(&token, 1));
    if (token == 2) session.save(model.ctx, dir / "short.safetensors");
  }
  session.save(model.ctx, dir / "long.safetensors");
  return 0;
}
