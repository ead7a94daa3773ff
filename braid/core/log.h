#pragma once

#include <functional>
#include <string_view>

namespace braid {

/// The library never prints. Whoever wants to see its notes hands in one of these.
using Log = std::function<void(std::string_view line)>;

}  // namespace braid
