#pragma once

#include <cstdint>

namespace braid {

/// Tokens to a page of a paged state slot.
inline constexpr int64_t kPageTokens = 64;

/// Where the rows of one sequence's paged slot lie: token t (absolute position) is in
/// pages[(t / kPageTokens) % count]. A growing slot has a page for every token; a ring reuses them.
/// How a page is laid out inside is the business of the op that writes it.
struct PageTable {
  void* const* pages = nullptr;
  int64_t count = 0;

  void* page_of(int64_t token) const { return pages[(token / kPageTokens) % count]; }
};

}  // namespace braid
