#include "bench/timing.h"

#include <algorithm>
#include <chrono>

namespace braid::bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<double> interleaved_medians(std::span<const std::function<void()>> bodies, int rounds) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> seconds(bodies.size());
  for (int round = -1; round < rounds; ++round) {
    for (size_t i = 0; i < bodies.size(); ++i) {
      const auto begin = Clock::now();
      bodies[i]();
      const std::chrono::duration<double> elapsed = Clock::now() - begin;
      if (round >= 0) seconds[i].push_back(elapsed.count());
    }
  }
  std::vector<double> medians;
  for (auto& values : seconds) medians.push_back(median(std::move(values)));
  return medians;
}

}  // namespace braid::bench
