// A session file of any content is loaded whole or refused with an Error; what was loaded can go
// on.
#include "braid/infer/session.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/session_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static braid::fuzz::SessionModel model;
  const int fd = memfd_create("session", 0);
  if (fd < 0) return 0;
  if (write(fd, data, size) == static_cast<ssize_t>(size)) {
    braid::fuzz::accepted([&] {
      braid::Session session = model.session();
      session.load("/proc/self/fd/" + std::to_string(fd));
      const int32_t token = 3;
      session.append(model.ctx, std::span(&token, 1));
    });
  }
  close(fd);
  return 0;
}
