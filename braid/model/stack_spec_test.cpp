// Goal: the stack grammar is read as written, printed canonically, and refused with the column.
// Method: texts and their expansions; every error with its column; print and parse are inverse.
#include "braid/model/stack_spec.h"

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;

std::vector<std::string> texts(std::string_view stack) {
  std::vector<std::string> out;
  for (const ParallelSpec& spec : parse_stack(stack)) out.push_back(to_string(spec));
  return out;
}

TEST(StackSpec, Expands) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(texts("attn"), Texts{"attn"});
  EXPECT_EQ(texts(" attn\tswiglu\n"), (Texts{"attn", "swiglu"}));
  EXPECT_EQ(texts("(attn swiglu)x2 mamba2"), (Texts{"attn", "swiglu", "attn", "swiglu", "mamba2"}));
  EXPECT_EQ(texts("((a b)x2 c)x2"), (Texts{"a", "b", "a", "b", "c", "a", "b", "a", "b", "c"}));
  EXPECT_EQ(texts("(a)(b) (c)"), (Texts{"a", "b", "c"}));
  EXPECT_EQ(texts("attn:heads=8,kv=2|mamba2:state=128 moe:256/8,shared=1"),
            (Texts{"attn:heads=8,kv=2|mamba2:state=128", "moe:256/8,shared=1"}));
  EXPECT_EQ(texts("swa:1024,theta=1e+06,short=1.0/1.05,dt_min=-0.5").front(),
            "swa:1024,theta=1e+06,short=1.0/1.05,dt_min=-0.5");
}

TEST(StackSpec, KeepsColumns) {
  const auto stack = parse_stack("(a  swa:16,heads=2|b)");
  EXPECT_EQ(stack[0].branches[0].column, 2);
  const SublayerSpec& swa = stack[1].branches[0];
  EXPECT_EQ(swa.column, 5);
  EXPECT_EQ(swa.args[0].column, 9);
  EXPECT_EQ(swa.args[1].column, 12);
  EXPECT_EQ(swa.args[1].key, "heads");
  EXPECT_EQ(swa.args[1].value, "2");
  EXPECT_EQ(stack[1].branches[1].column, 20);
}

TEST(StackSpec, RefusesBadSyntaxWithItsColumn) {
  const std::pair<const char*, const char*> kCases[] = {
      {"", "stack: column 1: found the end, want the name of a sublayer"},
      {"  ", "column 3: found the end, want the name"},
      {"()", "column 2: found \")\", want the name"},
      {"(a", "column 3: found the end, want \")\" for the parenthesis of column 1"},
      {"a)", "column 2: found \")\", want a sublayer or the end"},
      {"(a)x", "column 5: found the end, want a count from 1 to 4096"},
      {"(a)x0", "column 5: found \"0\", want a count"},
      {"(a)x4097", "column 5: found \"4097\", want a count"},
      {"(a)x-1", "column 5: found \"-1\", want a count"},
      {"(a)x99999999999999999999999", "column 5: found"},
      {"(a)y", "column 4: found \"y\", want a space"},
      {"a,b", "column 2: found \",b\", want a space"},
      {"a|", "column 3: found the end, want the name"},
      {"|a", "column 1: found \"|a\""},
      {"a||b", "column 3: found \"|b\", want the name"},
      {"a:", "column 3: found the end, want VALUE or KEY=VALUE"},
      {"a:b=", "column 5: found the end, want a value for b"},
      {"a:b=1,", "column 7: found the end, want VALUE or KEY=VALUE"},
      {"a:=1", "column 3: found \"=1\", want VALUE or KEY=VALUE"},
      {"a:1=2", "column 3: found \"1=2\", want a key that begins with a letter"},
      {"a:b.c=2", "column 4: found \".c=2\", want \"=\""},
      {"a:b=1=2", "column 6: found \"=2\""},
      {"a:b=1,c=2,b=3", "column 11: b is given twice, want it once"},
      {"1a", "column 1: found \"1a\", want the name"},
      {"a \x01", "column 3: found \"\\x01\""},
      {"a:b=\xff", "column 5: found \"\\xff\""},
  };
  for (const auto& [text, want] : kCases) {
    SCOPED_TRACE(text);
    expect_refused([&, spec = text] { parse_stack(spec); }, want);
  }
  expect_refused([&] { parse_stack(std::string_view("a\0b", 3)); }, "column 2: found \"\\x00b\"");
}

TEST(StackSpec, RefusesUnknownNames) {
  const std::string_view known[] = {"attn", "swiglu"};
  EXPECT_EQ(parse_stack("(attn swiglu)x3", known).size(), 6u);
  expect_refused([&] { parse_stack("(attn  swigul)x3", known); },
                 "stack: column 8: found \"swigul)x3\", want a sublayer, one of attn, swiglu");
}

TEST(StackSpec, HasLimits) {
  EXPECT_EQ(parse_stack("((a)x64)x64").size(), 4096u);
  expect_refused([] { parse_stack("((a)x64)x65"); }, "65 times 64 sublayers, want at most 4096");
  expect_refused([] { parse_stack("(a)x4096 b"); }, "more than 4096 sublayers");
  expect_refused([] { parse_stack(std::string(100000, '(')); }, "nested deeper than 16");
  expect_refused([] { parse_stack(std::string(2 << 20, 'a')); }, "2097152 bytes of text");
  expect_refused([] { parse_stack(std::string(20000, 'a')); }, "a sublayer of 20000 bytes");
  std::string wide = "a";
  for (int i = 0; i < 64; ++i) wide += "|a";
  expect_refused([&] { parse_stack(wide); }, "at most 64 branches");
  std::string long_list = "a:x";
  for (int i = 0; i < 64; ++i) long_list += ",x";
  expect_refused([&] { parse_stack(long_list); }, "more than 64 options for a");
}

TEST(StackSpec, PrintsCanonically) {
  const std::pair<const char*, const char*> kCases[] = {
      {"a", "a"},
      {"a a", "(a)x2"},
      {"a b a b a b c", "(a b)x3 c"},
      {"(((a b)))x1", "a b"},
      {"x (mamba2 swa:1024|attn:heads=2 swiglu)x24 y y",
       "x (mamba2 swa:1024|attn:heads=2 swiglu)x24 (y)x2"},
      {"(a a b)x4", "(a a b)x4"},
  };
  for (const auto& [text, want] : kCases) {
    const auto stack = parse_stack(text);
    EXPECT_EQ(print_stack(stack), want);
    EXPECT_TRUE(parse_stack(print_stack(stack)) == stack) << text;
  }
}

}  // namespace
}  // namespace braid
