#pragma once

#include <memory>

#include "braid/train/tasks/task.h"

namespace braid {

// One file each; options, tokens and answers are described there.
std::unique_ptr<Task> make_mqar(SpecOptions& options);

}  // namespace braid
