// A stack of any text is refused with an Error, or prints as a text that parses to the same stack;
// options of any text are read or refused.
#include "braid/model/stack_spec.h"

#include "tests/fuzz/fuzz.h"

namespace {

void read_options(const braid::SublayerSpec& spec) {
  braid::fuzz::accepted([&] {
    braid::SpecOptions options(spec);
    braid::fuzz::accepted([&] { options.integer("a", 1); });
    braid::fuzz::accepted([&] { options.number("b", 1, 0, braid::SpecOptions::kInfinity); });
    braid::fuzz::accepted([&] { options.flag("c", false); });
    braid::fuzz::accepted([&] { options.text("d", "x", {"x", "y"}); });
    braid::fuzz::accepted([&] { options.numbers("e", -1); });
    braid::fuzz::accepted([&] { options.positional_integer("w"); });
    braid::fuzz::accepted([&] { options.positional_text("t"); });
    options.done();
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<braid::ParallelSpec> stack;
  const bool accepted =
      braid::fuzz::accepted([&] { stack = braid::parse_stack(braid::fuzz::text(data, size)); });
  if (!accepted) return 0;
  braid::fuzz::require(!stack.empty(), "a stack of nothing");
  const std::string text = braid::print_stack(stack);
  std::vector<braid::ParallelSpec> again;
  braid::fuzz::require(braid::fuzz::accepted([&] { again = braid::parse_stack(text); }),
                       "a printed stack that does not parse");
  braid::fuzz::require(again == stack, "a printed stack that is another stack");
  braid::fuzz::require(braid::print_stack(again) == text, "a text that is not canonical");
  for (size_t i = 0; i < stack.size() && i < 8; ++i) {
    for (const braid::SublayerSpec& branch : stack[i].branches) read_options(branch);
  }
  return 0;
}
