#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

namespace braid {

/// A file of JSON lines that only grows, each line written whole. A resumed run hands in how much
/// of it belongs to its checkpoint; what came after is cut off, so no step appears twice.
///
/// Thread safety: one thread at a time.
class MetricsLog {
 public:
  /// Opens or creates `path` and cuts it to `keep_bytes`. Throws Error(kFormat) if it is shorter.
  MetricsLog(const std::filesystem::path& path, uint64_t keep_bytes);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// Numbers that JSON cannot say (NaN, infinity) are written as null.
  void write(const nlohmann::json& line);
  /// Forces what was written to the disk, and says how much it is.
  uint64_t sync();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
};

}  // namespace braid
