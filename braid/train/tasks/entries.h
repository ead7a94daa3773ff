#pragma once

#include <memory>

#include "braid/train/tasks/task.h"

namespace braid {

// One file each; options, tokens and answers are described there.
std::unique_ptr<Task> make_mqar(SpecOptions& options);
std::unique_ptr<Task> make_selective_copy(SpecOptions& options);
std::unique_ptr<Task> make_induction(SpecOptions& options);
std::unique_ptr<Task> make_parity(SpecOptions& options);
std::unique_ptr<Task> make_modular(SpecOptions& options);
std::unique_ptr<Task> make_needle(SpecOptions& options);

}  // namespace braid
