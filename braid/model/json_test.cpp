// Goal: JSON from strangers is bounded and unambiguous, and typed reads say what is wrong.
// Method: hostile texts one by one.
#include "braid/model/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;

TEST(Json, RefusesWhatIsAmbiguousOrUnbounded) {
  const std::pair<std::string, const char*> kCases[] = {
      {"", "f: byte"},
      {"{", "not JSON"},
      {"{\"a\":1} x", "not JSON"},
      {"{\"a\":1,}", "not JSON"},
      {"{\"a\":1,\"a\":2}", "f: key \"a\" is given twice"},
      {"{\"b\":{\"a\":1,\"\\u0061\":2}}", "key \"a\" is given twice"},
      {"[1e999]", "not JSON"},
      {"\"\xff\"", "invalid UTF-8"},
      {"\"\\ud800\"", "not JSON"},
      {"[NaN]", "not JSON"},
      {std::string(65, '[') + std::string(65, ']'), "nested deeper than 64"},
      {std::string(1 << 20, '['), "nested deeper than 64"},
  };
  for (const auto& [text, want] : kCases) {
    SCOPED_TRACE(text.substr(0, 80));
    expect_refused([&, &body = text] { parse_json(body, "f"); }, want);
  }
  expect_refused([] { parse_json("[1,2,3]", "f", {.max_values = 3}); }, "more than 3 JSON values");
  expect_refused([] { parse_json("[1,2,3]", "f", {.max_bytes = 6}); }, "7 bytes of JSON");
  EXPECT_EQ(parse_json(std::string(64, '[') + std::string(64, ']'), "f").size(), 1u);
}

TEST(Json, ReadsPythonNumbers) {
  const auto root = parse_json(
      R"({"limit": [0.0, Infinity], "s": "Infinity \" NaN", "n": -Infinity,
          "w": {"__float__": "Infinity"}})",
      "f", {.python_numbers = true});
  const JsonObject object(root, "f");
  EXPECT_TRUE(std::isinf(object.numbers("limit", 0, INFINITY)[1]));
  EXPECT_TRUE(std::isinf(object.number("w", 0, INFINITY)));
  EXPECT_EQ(object.text("s"), "Infinity \" NaN");
  expect_refused([&] { object.number("n", 0, INFINITY); },
                 "f: n is -inf, want a number of at least 0");
  expect_refused([&] { object.number("w"); }, "f: w is inf");
}

TEST(JsonObject, NamesKeyFoundAndWanted) {
  const auto root = parse_json(
      R"({"i": 3, "big": 18446744073709551615, "f": 2.5, "t": "x\ny", "o": {}, "l": [1, "a"],
          "z": null, "b": true})",
      "f");
  const JsonObject object(root, "f");
  EXPECT_EQ(object.integer("i", 0, 5), 3);
  EXPECT_EQ(object.integer_or("z", 7, 0, 9), 7);
  EXPECT_EQ(object.number("i"), 3.0);
  EXPECT_TRUE(object.flag_or("b", false));
  EXPECT_EQ(object.integers_or_one("i", 0, 5), std::vector<int64_t>{3});
  expect_refused([&] { object.integer("i", 5, 9); }, "f: i is 3, want an integer from 5 to 9");
  expect_refused([&] { object.integer("big", 0, 9); }, "big is 18446744073709551615");
  expect_refused([&] { object.integer("f", 0, 9); }, "f is 2.5");
  expect_refused([&] { object.integer("b", 0, 9); }, "b is true");
  expect_refused([&] { object.integer("q", 0, 9); }, "q is missing, want an integer");
  expect_refused([&] { object.integer("t", 0, 9); }, "t is \"x\\x0ay\"");
  expect_refused([&] { object.integer("o", 0, 9); }, "o is an object");
  expect_refused([&] { object.numbers("l", 0, 9); }, "l[1] is \"a\"");
  expect_refused([&] { object.integers_or_one("l", 0, 9); }, "l[1] is \"a\"");
  expect_refused([&] { object.text("i"); }, "i is 3, want a string");
  expect_refused([&] { object.flag_or("i", false); }, "i is 3, want true or false");
  expect_refused([&] { object.object("l"); }, "f: l: holds a list of 2, want an object");
  expect_refused([&] { JsonObject(root["l"], "f"); }, "f: holds a list of 2");
}

TEST(Quote, IsOneCleanLine) {
  EXPECT_EQ(quote("a\n\x7f\xff\xc3\xa9"), "\"a\\x0a\\x7f\\xff\xc3\xa9\"");
  EXPECT_EQ(quote(std::string(100, 'a'), 4), "\"aaaa...\"");
  EXPECT_EQ(quote("ab\xc3"), "\"ab\\xc3\"");
}

}  // namespace
}  // namespace braid
