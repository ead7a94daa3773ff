// Goal: options of a sublayer are read by type, and everything wrong is refused with its column.
// Method: specs built by hand; each refusal is compared with the words it must hold.
#include "braid/nn/spec.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;

SublayerSpec sample() {
  return {.name = "swa",
          .args = {{"", "1024", 5}, {"heads", "8", 10}, {"theta", "1e6", 18}, {"bias", "1", 28}},
          .column = 1};
}

TEST(SpecOptions, ReadsEveryType) {
  SublayerSpec spec = sample();
  spec.args.push_back({"rope", "linear", 40});
  spec.args.push_back({"short", "1.0/1.05/2", 50});
  spec.args.push_back({"dt_max", "inf", 60});
  SpecOptions options(spec);
  EXPECT_EQ(options.positional_integer("window"), 1024);
  EXPECT_EQ(options.integer("heads", 1), 8);
  EXPECT_EQ(options.integer("kv", 3), 3);
  EXPECT_EQ(options.number("theta", 1), 1e6);
  EXPECT_TRUE(options.flag("bias", false));
  EXPECT_EQ(options.text("rope", "default", {"default", "linear"}), "linear");
  EXPECT_EQ(options.numbers("short"), (std::vector<double>{1.0, 1.05, 2}));
  EXPECT_TRUE(std::isinf(options.number("dt_max", 1, 0, SpecOptions::kInfinity)));
  EXPECT_TRUE(options.numbers("long").empty());
  options.done();
}

TEST(SpecOptions, PositionalMayBeNamed) {
  const SublayerSpec spec{.name = "swa", .args = {{"window", "7", 5}}, .column = 1};
  SpecOptions options(spec);
  EXPECT_EQ(options.positional_integer("window"), 7);
  options.done();
  const SublayerSpec empty{.name = "swa", .args = {}, .column = 1};
  EXPECT_EQ(SpecOptions(empty).positional_integer_or("window", 9), 9);
}

TEST(SpecOptions, RefusesWithColumnFoundAndWanted) {
  const SublayerSpec spec{.name = "attn",
                          .args = {{"heads", "x", 6},
                                   {"kv", "70000", 14},
                                   {"theta", "nan", 23},
                                   {"partial", "inf", 33},
                                   {"bias", "yes", 45},
                                   {"rope", "su", 54},
                                   {"short", "1//2", 62},
                                   {"dim", "8.5", 73}},
                          .column = 1};
  SpecOptions options(spec);
  expect_refused([&] { options.integer("heads", 1, 1, 65536); },
                 "attn: column 6: heads is \"x\", want an integer from 1 to 65536");
  expect_refused([&] { options.integer("kv", 1, 1, 65536); }, "column 14: kv is \"70000\"");
  expect_refused([&] { options.integer("dim", 1); }, "column 73: dim is \"8.5\"");
  expect_refused([&] { options.number("theta", 1); },
                 "theta is \"nan\", want a number of at least");
  expect_refused([&] { options.number("partial", 1, 0, 1); }, "want a number from 0 to 1");
  expect_refused([&] { options.flag("bias", false); }, "bias is \"yes\", want 0 or 1");
  expect_refused(
      [&] {
        options.text("rope", "", {"default", "yarn"});
      },
      "rope is \"su\", want one of default, yarn");
  expect_refused([&] { options.numbers("short"); }, "want numbers of at least 0 separated by /");
  expect_refused([&] { options.positional_integer("window"); },
                 "attn: column 1: window is missing");
  expect_refused([&] { options.positional_choice("experts", 99); },
                 "attn: column 1: experts is missing, want E/k: k of E, with k from 1 to E");
  expect_refused([&] { options.refuse("kv", "a divisor of heads"); },
                 "column 14: kv is \"70000\", want a divisor of heads");
}

TEST(SpecOptions, RefusesRepeatedUnknownAndUnasked) {
  SublayerSpec spec = sample();
  {
    SpecOptions options(spec);
    expect_refused([&] { options.done(); }, "swa: column 5: unexpected value \"1024\"");
    options.positional_integer("window");
    options.integer("heads", 1);
    expect_refused([&] { options.done(); },
                   "swa: column 18: unknown option theta, want one of window, heads");
  }
  spec.args.push_back({"window", "3", 33});
  expect_refused([&] { SpecOptions(spec).positional_integer("window"); }, "window is given twice");
  spec.args.push_back({"heads", "3", 43});
  expect_refused([&] { SpecOptions options(spec); }, "swa: column 43: heads is given twice");
}

TEST(SpecOptions, ReadsAChoice) {
  const auto read = [](const std::string& text) {
    const SublayerSpec spec{.name = "moe", .args = {{"", text, 5}}, .column = 1};
    return SpecOptions(spec).positional_choice("experts", 99);
  };
  EXPECT_EQ(read("99/1").of, 99);
  EXPECT_EQ(read("8/8").picked, 8);
  for (const char* text : {"8", "8/", "/2", "8/0", "8/9", "100/2", "0/0", "8/2/1", "-8/2", "8/x"}) {
    expect_refused([&] { read(text); },
                   fmt::format("moe: column 5: experts is \"{}\", want E/k", text));
  }
}

TEST(SpecNumbers, TextAndValueRoundTrip) {
  for (const double value : {0.0, 1.0, -3.0, 0.1, 1e-5, 10000.0, 5e5, 1.05, 1e300, 3.4e38,
                             std::numeric_limits<double>::infinity()}) {
    double back = -1;
    EXPECT_TRUE(parse_number(format_number(value), &back)) << value;
    EXPECT_EQ(back, value);
  }
  double value = 0;
  for (const char* text : {"", " 1", "1 ", "0x10", "nan", "1e999", "--1", "1,5"}) {
    EXPECT_FALSE(parse_number(text, &value)) << text;
  }
}

}  // namespace
}  // namespace braid
