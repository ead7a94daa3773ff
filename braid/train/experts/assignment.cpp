#include "braid/train/experts/assignment.h"

#include <cmath>
#include <limits>

#include "braid/core/error.h"

namespace braid {
namespace {

constexpr int64_t kNone = -1;

// Invariants: cost[r, c] >= u[r] + v[c], with equality where c is the column of r.
class Assignment {
 public:
  Assignment(std::span<const float> cost, int64_t n)
      : cost_(cost.data()), n_(n), u_(at(n)), v_(at(n)), column_(at(n), kNone), row_(at(n), kNone) {
    start();
    for (int64_t r = 0; r < n_; ++r) {
      if (column_[at(r)] == kNone) augment(r);
    }
  }
  std::vector<int64_t> columns() && { return std::move(column_); }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  // Duals of the rows' least elements; each row takes its own where no row before it has.
  void start() {
    for (int64_t r = 0; r < n_; ++r) {
      const float* row = cost_ + r * n_;
      int64_t least = 0;
      for (int64_t c = 1; c < n_; ++c) {
        if (row[c] < row[least]) least = c;
      }
      u_[at(r)] = row[least];
      if (row_[at(least)] != kNone) continue;
      column_[at(r)] = least;
      row_[at(least)] = r;
    }
  }

  // Dijkstra over the columns from a free row to the nearest free column, then the path is flipped.
  void augment(int64_t start) {
    constexpr double kFar = std::numeric_limits<double>::infinity();
    std::vector<double> distance(at(n_), kFar);
    std::vector<int64_t> from(at(n_), kNone);  // the row a column is reached from
    std::vector<bool> done(at(n_), false);
    std::vector<int64_t> visited;  // columns that are done, with their rows
    int64_t r = start, end = kNone;
    double reached = 0;
    while (end == kNone) {
      const float* row = cost_ + r * n_;
      int64_t nearest = kNone;
      for (int64_t c = 0; c < n_; ++c) {
        if (done[at(c)]) continue;
        const double d = reached + (static_cast<double>(row[c]) - u_[at(r)] - v_[at(c)]);
        if (d < distance[at(c)]) {
          distance[at(c)] = d;
          from[at(c)] = r;
        }
        if (nearest == kNone || distance[at(c)] < distance[at(nearest)]) nearest = c;
      }
      reached = distance[at(nearest)];
      done[at(nearest)] = true;
      if (row_[at(nearest)] == kNone) {
        end = nearest;
      } else {
        visited.push_back(nearest);
        r = row_[at(nearest)];
      }
    }
    u_[at(start)] += reached;
    for (const int64_t c : visited) {
      u_[at(row_[at(c)])] += reached - distance[at(c)];
      v_[at(c)] -= reached - distance[at(c)];
    }
    for (int64_t c = end; c != kNone;) {
      const int64_t owner = from[at(c)], next = column_[at(owner)];
      row_[at(c)] = owner;
      column_[at(owner)] = c;
      c = owner == start ? kNone : next;
    }
  }

  const float* cost_;
  int64_t n_;
  std::vector<double> u_, v_;
  std::vector<int64_t> column_, row_;
};

}  // namespace

std::vector<int64_t> assign(std::span<const float> cost, int64_t n) {
  check(n >= 0 && static_cast<int64_t>(cost.size()) == n * n,
        "assign: {} costs, want those of {} x {}", cost.size(), n, n);
  for (const float c : cost) check(std::isfinite(c), "assign: a cost is {}, want finite ones", c);
  return Assignment(cost, n).columns();
}

}  // namespace braid
