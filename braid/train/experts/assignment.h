#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace braid {

/// The permutation of least cost: `column[r]` for each row r of `cost` (n, n), row-major, such that
/// the sum of cost[r, column[r]] is the least possible. O(n^3), far less where the cheapest column
/// of most rows is their own. The same input gives the same permutation always.
///
/// Shortest augmenting paths over reduced costs, after a greedy start from the least element of
/// every row. Source: Jonker and Volgenant, Computing 38 (1987); Crouse, IEEE TAES 52 (2016).
/// Throws Error(kUsage) where the size does not fit or a cost is not finite.
std::vector<int64_t> assign(std::span<const float> cost, int64_t n);

}  // namespace braid
