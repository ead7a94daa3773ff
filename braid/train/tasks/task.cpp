#include "braid/train/tasks/task.h"

#include <vector>

#include "braid/model/stack_spec.h"
#include "braid/train/tasks/entries.h"

namespace braid {
namespace {

constexpr TaskEntry kTasks[] = {
    {"mqar", "mqar:pairs=4,len=64,vocab=512", &make_mqar},
    {"selective_copy", "selective_copy:tokens=4,len=32,vocab=10", &make_selective_copy},
    {"induction", "induction:len=64,vocab=17", &make_induction},
    {"parity", "parity:len=32", &make_parity},
    {"modular", "modular:group=s5,len=32", &make_modular},
    {"needle", "needle:needles=2,len=64,vocab=64", &make_needle},
};

}  // namespace

std::span<const TaskEntry> task_registry() { return kTasks; }

std::string task_names() {
  std::string names;
  for (const TaskEntry& entry : kTasks) {
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  return names;
}

std::unique_ptr<Task> make_task(std::string_view spec) {
  std::vector<std::string_view> names;
  for (const TaskEntry& entry : kTasks) names.push_back(entry.name);
  const SublayerSpec parsed = parse_single_spec(spec, "task", names);
  SpecOptions options(parsed);
  for (const TaskEntry& entry : kTasks) {
    if (entry.name != parsed.name) continue;
    std::unique_ptr<Task> task = entry.make(options);
    options.done();
    return task;
  }
  return nullptr;  // not reached: the parser takes no other name
}

int64_t task_length(SpecOptions& options, int64_t fallback, int64_t min) {
  return options.integer("len", fallback, min, int64_t{1} << 24);
}

int64_t task_vocab(SpecOptions& options, int64_t fallback, int64_t min) {
  return options.integer("vocab", fallback, min, int64_t{1} << 20);
}

}  // namespace braid
