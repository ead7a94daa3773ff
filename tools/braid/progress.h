#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace braid {

/// One line on stderr that is drawn over itself, a few times a second at most; nothing at all where
/// stderr is not a terminal.
///
///   train  [#########.....................]  31%  loss 2.871  9.8k tokens/s  24:10 left
class ProgressLine {
 public:
  explicit ProgressLine(std::string_view what);
  ~ProgressLine();  // leaves the last state standing, on a line of its own
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(int64_t done, int64_t total, std::string_view detail = {});
  /// A lasting line above the bar; printed whether or not there is a bar.
  void note(std::string_view line);

 private:
  using Clock = std::chrono::steady_clock;
  void draw();

  std::string what_, detail_;
  bool terminal_, drawn_ = false;
  int64_t first_ = -1, done_ = 0, total_ = 0;  // `first_`: where this process began
  Clock::time_point start_, last_draw_;
};

}  // namespace braid
