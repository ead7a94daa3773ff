#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "braid/nn/spec.h"

namespace braid {

/// The text of a stack:
///
///   stack := item { item }          item := "(" stack ")" [ "x" COUNT ] | par
///   par   := sub { "|" sub }        sub  := NAME [ ":" arg { "," arg } ]
///   arg   := VALUE | KEY "=" VALUE
///
/// NAME and KEY are made of letters, digits and _, and begin with a letter; VALUE of letters,
/// digits and _ . / + -. Spaces separate items and may stand nowhere inside a `sub`.
struct StackLimits {
  size_t max_bytes = size_t{1} << 20;
  size_t max_sublayers = 4096;                  // after repetition
  size_t max_sublayer_bytes = size_t{1} << 14;  // times max_sublayers, this bounds the memory
  int max_depth = 16;
};

/// Parses and expands into one entry per residual sublayer. Refuses, with the column and what was
/// wanted: bad syntax, repeated keys, names not among `known` (any name passes where it is empty)
/// and stacks beyond the limits. What the options mean is the modules' business.
std::vector<ParallelSpec> parse_stack(std::string_view text,
                                      std::span<const std::string_view> known = {},
                                      const StackLimits& limits = {});

/// One NAME[:arg{,arg}] that is not part of a stack: `subject` says in refusals what the text is
/// ("task: column 3: ..."). Takes only names among `known`.
SublayerSpec parse_single_spec(std::string_view text, std::string_view subject,
                               std::span<const std::string_view> known);

/// The canonical text: repeated runs are written `(...)xN`. `parse_stack` of it gives `stack` back,
/// up to columns.
std::string print_stack(std::span<const ParallelSpec> stack);
std::string to_string(const SublayerSpec& spec);
std::string to_string(const ParallelSpec& spec);

}  // namespace braid
