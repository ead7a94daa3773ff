#include "tools/braid/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace braid {
namespace {

constexpr int kBarWidth = 30;
constexpr auto kInterval = std::chrono::milliseconds(100);

size_t terminal_width() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

std::string clock_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

ProgressLine::ProgressLine(std::string_view what)
    : what_(what), terminal_(::isatty(STDERR_FILENO) != 0), start_(Clock::now()) {}

ProgressLine::~ProgressLine() {
  if (!drawn_) return;
  draw();
  std::fputs("\n", stderr);
}

void ProgressLine::update(int64_t done, int64_t total, std::string_view detail) {
  if (first_ < 0) {
    first_ = done;
    start_ = Clock::now();
  }
  done_ = done;
  total_ = std::max<int64_t>(total, 1);
  detail_ = detail;
  const auto now = Clock::now();
  if (!terminal_ || (drawn_ && now - last_draw_ < kInterval)) return;
  last_draw_ = now;
  draw();
}

void ProgressLine::draw() {
  const double share = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0., 1.);
  const int filled = static_cast<int>(share * kBarWidth);
  std::string line = fmt::format("{} [{:#<{}}{:.<{}}] {:3.0f}%", what_, "", filled, "",
                                 kBarWidth - filled, 100 * share);
  if (!detail_.empty()) line += "  " + detail_;
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  if (done_ > first_ && done_ < total_) {
    const double left =
        elapsed * static_cast<double>(total_ - done_) / static_cast<double>(done_ - first_);
    line += "  " + clock_text(left) + " left";
  }
  // A line that wraps could not be drawn over.
  line.resize(std::min(line.size(), terminal_width() - 1));
  std::fputs(fmt::format("\r{}\x1b[K", line).c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressLine::note(std::string_view line) {
  std::fputs(fmt::format("{}{}\n", drawn_ ? "\r\x1b[K" : "", line).c_str(), stderr);
  if (drawn_) draw();
}

}  // namespace braid
