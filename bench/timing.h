#pragma once

#include <functional>
#include <span>
#include <vector>

namespace braid::bench {

/// Seconds per call of each body: medians over `rounds` rounds in which every body runs once, so
/// that a disturbance of the machine falls on all alike. One round more warms up.
std::vector<double> interleaved_medians(std::span<const std::function<void()>> bodies, int rounds);

double median(std::vector<double> values);

}  // namespace braid::bench
