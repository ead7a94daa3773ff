#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "braid/ops/route/options.h"

namespace braid::cases {

struct Route {
  std::string_view name;
  int64_t tokens, experts;
  RouteOptions options;
  bool bias = false;
};

inline const std::vector<Route> kRouteTest = {
    {"one of one", 3, 1, {.top_k = 1}},
    {"one of many", 65, 17, {.top_k = 1}},
    {"softmax", 63, 8, {.top_k = 2, .normalise = true}},
    {"all", 7, 5, {.top_k = 5, .scale = 0.5f}},
    {"selected", 33, 40, {.top_k = 8, .score = RouteScore::kSelected}},
    {"selected, biased", 9, 12, {.top_k = 3, .score = RouteScore::kSelected, .scale = 2}, true},
    {"groups by their best",
     31,
     24,
     {.top_k = 3, .groups = 6, .kept_groups = 2, .group_score = GroupScore::kMax}},
    {"sigmoid in groups",
     65,
     64,
     {.top_k = 6,
      .score = RouteScore::kSigmoid,
      .normalise = true,
      .scale = 2.5f,
      .groups = 8,
      .kept_groups = 3},
     true},
    {"groups of one",
     12,
     6,
     {.top_k = 2, .score = RouteScore::kSigmoid, .groups = 6, .kept_groups = 4},
     true},
};

inline const std::vector<Route> kRouteBench = {
    {"8 experts", 2048, 8, {.top_k = 2, .normalise = true}},
    {"512 experts", 2048, 512, {.top_k = 10, .normalise = true}},
    {"256 experts in 8 groups",
     2048,
     256,
     {.top_k = 8,
      .score = RouteScore::kSigmoid,
      .normalise = true,
      .scale = 2.5f,
      .groups = 8,
      .kept_groups = 4},
     true},
    {"256 experts", 1, 256, {.top_k = 8, .score = RouteScore::kSigmoid, .normalise = true}},
};

}  // namespace braid::cases
