#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace braid {

/// What went wrong, as a closed set. The command line maps kUsage to exit code 2 only for its own
/// flags; everything else that reaches it ends with exit code 1.
enum class ErrorKind {
  kUsage,        // an argument, flag, spec or shape the caller got wrong
  kFormat,       // the contents of a file, config or tokenizer are not what they must be
  kIo,           // the operating system refused: missing file, full disk, no permission
  kUnsupported,  // well formed, but this build or this device does not do it
  kResource,     // memory or another limit is exhausted
  kDevice,       // an accelerator reported an error
};

/// The one exception of the library. `what()` is one line: who complains, what was found, what was
/// wanted.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

/// For what a caller can get wrong. Our own bugs are `assert`ed instead.
template <class... Args>
void check(bool ok, ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]] {
    fail(kind, format, std::forward<Args>(args)...);
  }
}

template <class... Args>
void check(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]] {
    fail(ErrorKind::kUsage, format, std::forward<Args>(args)...);
  }
}

}  // namespace braid
