#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string_view>

#include "braid/core/error.h"

namespace braid::fuzz {

/// Ends the process so that the fuzzer keeps the input; unlike assert, in release builds too.
inline void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

/// Runs `call`, which may refuse its input, but only by an Error of one short line.
inline bool accepted(const std::function<void()>& call) {
  try {
    call();
    return true;
  } catch (const Error& error) {
    const std::string_view what = error.what();
    require(!what.empty() && what.size() < 8192, "an error without a message, or with a novel");
    require(what.find('\n') == std::string_view::npos, "an error message of several lines");
    return false;
  }
}

inline std::string_view text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace braid::fuzz
