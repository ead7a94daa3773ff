// Goal: the laws of a transport between processes. Run by mpirun; an argument "fail" makes rank 1
// throw while the others wait, "die" kills it.
#include <csignal>
#include <cstdio>
#include <string_view>

#include "tests/dist/transport_laws.h"

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  braid::run_on_mpi(
      {.patience = std::chrono::seconds(60)},
      [&](braid::Transport& t) {
        braid::check_transport_laws(t);
        if (t.rank() == 1) {
          braid::check(mode != "fail", "a broken file");
          if (mode == "die") std::raise(SIGKILL);
        }
        t.barrier();
        if (t.rank() == 0) std::printf("%d ranks keep the laws\n", t.size());
      },
      [](int rank, std::string_view what) {
        std::fprintf(stderr, "rank %d: %.*s\n", rank, static_cast<int>(what.size()), what.data());
      });
}
