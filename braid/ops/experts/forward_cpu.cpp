#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <thread>

#include "braid/core/thread_pool.h"
#include "braid/ops/experts/kernels.h"
#include "braid/ops/experts/units.h"
#include "braid/ops/linear/on_thread.h"

namespace braid::cpu {
namespace {

// A matrix of this size repays all threads on one product.
constexpr size_t kLargeBytes = size_t{4} << 20;
// A task of the panel form reads about this much of a matrix.
constexpr size_t kChunkBytes = size_t{64} << 10;

// None of it changes a bit of the result.
enum class Form : uint8_t {
  kProducts,  // one expert after the other, each product on all threads
  kUnits,     // a task is one unit from x to y
  kPanels,    // too few units: a task is some panels of one product of a unit
};

struct Plan {
  Form form;
  int64_t unit_rows, units;
  int64_t in_chunk, out_chunk;                 // panels to a task
  int64_t in_chunks, out_chunks;               // tasks to a unit
  size_t units_at, progress_at, pre_at, h_at;  // shared by the workers
  size_t workers_at, worker_bytes;
  size_t worker_x, worker_pre, worker_h, worker_product;
  size_t bytes;
};

Form choose_form(const ExpertDims& dims, int64_t units, int threads) {
  if (dims.in().bytes() >= kLargeBytes) return Form::kProducts;
  return threads == 1 || units >= 4 * int64_t{threads} ? Form::kUnits : Form::kPanels;
}

// What a unit of the panel form waits for: the parts of its first product that are left. The
// worker that does the last of them applies the activation.
struct Progress {
  std::atomic<int64_t> left;
  std::atomic<bool> ready;
};

Plan make_plan(const ExpertDims& dims, const ExpertGroup* groups, int threads, bool keeps_pre) {
  Plan plan{};
  plan.units = cut_units(dims.groups, groups, kUnitRows, nullptr);
  plan.form = choose_form(dims, plan.units, threads);
  const bool whole = plan.form == Form::kProducts, panels = plan.form == Form::kPanels;
  plan.unit_rows = whole ? std::numeric_limits<int64_t>::max() : kUnitRows;
  if (whole) plan.units = dims.groups;
  const int64_t most = largest_unit(dims.groups, groups, plan.unit_rows);
  const auto chunks = [](const PackedMatrix& b, int64_t& chunk) {
    const size_t panel = std::max<size_t>(1, b.panel_bytes());
    chunk = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / panel));
    return (b.panels() + chunk - 1) / chunk;
  };
  plan.in_chunks = chunks(dims.in(), plan.in_chunk);
  plan.out_chunks = chunks(dims.out(), plan.out_chunk);

  ScratchLayout layout;
  plan.units_at = layout.take(static_cast<size_t>(plan.units) * sizeof(Unit));
  plan.progress_at = layout.take(panels ? static_cast<size_t>(plan.units) * sizeof(Progress) : 0);
  plan.pre_at = layout.floats(panels && !keeps_pre ? dims.rows * dims.in_rows() : 0);
  plan.h_at = layout.floats(panels ? dims.rows * dims.hidden : 0);
  plan.workers_at = layout.bytes();
  ScratchLayout worker;
  plan.worker_x = worker.floats(most * dims.width);
  plan.worker_pre = worker.floats(panels || keeps_pre ? 0 : most * dims.in_rows());
  plan.worker_h = worker.floats(panels ? 0 : most * dims.hidden);
  plan.worker_product = worker.take(
      std::max(linear_scratch_bytes(rows_times(dims.in(), most, dims.width, dims.in_rows()), 0),
               linear_scratch_bytes(rows_times(dims.out(), most, dims.hidden, dims.width), 0)));
  plan.worker_bytes = worker.bytes();
  plan.bytes = plan.workers_at + (whole ? 1 : static_cast<size_t>(threads)) * plan.worker_bytes;
  return plan;
}

// A call: what its tasks read and write.
struct Call {
  const ExpertDims& dims;
  const Plan& plan;
  const ExpertGroup* groups;
  const int32_t* order;
  const float* x;
  float *kept_pre, *y;
  void* scratch;

  struct Rows {
    const float* data;
    int64_t row;  // elements between rows
  };

  Unit* units() const { return piece<Unit>(scratch, plan.units_at); }
  Progress* progress() const { return piece<Progress>(scratch, plan.progress_at); }
  void* worker(int index) const {
    return piece<std::byte>(scratch,
                            plan.workers_at + static_cast<size_t>(index) * plan.worker_bytes);
  }
  // Of a unit: its rows of x, gathered unless they lie in order; what `in` gives; hidden values.
  Rows rows_of_x(const Unit& unit, void* worker) const;
  float* pre(const Unit& unit, void* worker) const;
  float* h(const Unit& unit, void* worker) const;

  void run_whole(ThreadPool& threads, const Unit& unit) const;
  void run_unit(const Unit& unit, void* worker) const;
  void run_panels(int64_t task, void* worker) const;
  void run_in_panels(int64_t unit, int64_t chunk, void* worker) const;
  void run_out_panels(int64_t unit, int64_t chunk, void* worker) const;
};

Call::Rows Call::rows_of_x(const Unit& unit, void* worker) const {
  if (order == nullptr) return {x + unit.begin * dims.x_row, dims.x_row};
  auto* rows = piece<float>(worker, plan.worker_x);
  gather_rows(unit.rows(), dims.width, dims.slots, order + unit.begin, dims.x_row, x, rows);
  return {rows, dims.width};
}

float* Call::pre(const Unit& unit, void* worker) const {
  const int64_t at = unit.begin * dims.in_rows();
  if (kept_pre != nullptr) return kept_pre + at;
  return plan.form == Form::kPanels ? piece<float>(scratch, plan.pre_at) + at
                                    : piece<float>(worker, plan.worker_pre);
}

float* Call::h(const Unit& unit, void* worker) const {
  return plan.form == Form::kPanels ? piece<float>(scratch, plan.h_at) + unit.begin * dims.hidden
                                    : piece<float>(worker, plan.worker_h);
}

void Call::run_whole(ThreadPool& threads, const Unit& unit) const {
  const ExpertGroup& group = groups[unit.group];
  const int64_t m = unit.rows(), in_rows = dims.in_rows(), hidden = dims.hidden;
  float *unit_pre = pre(unit, worker(0)), *unit_h = h(unit, worker(0));
  auto* product = piece<std::byte>(worker(0), plan.worker_product);
  const Rows rows = rows_of_x(unit, worker(0));
  linear(threads, rows_times(dims.in(), m, rows.row, in_rows), rows.data, group.in, nullptr,
         unit_pre, product);
  threads.parallel_for(m, 1 + 16384 / hidden, [&](int64_t begin, int64_t end) {
    activate_rows(dims, end - begin, unit_pre + begin * in_rows, unit_h + begin * hidden);
  });
  linear(threads, rows_times(dims.out(), m, hidden, dims.width), unit_h, group.out, nullptr,
         y + unit.begin * dims.width, product);
}

void Call::run_unit(const Unit& unit, void* worker) const {
  const ExpertGroup& group = groups[unit.group];
  const int64_t m = unit.rows();
  float *unit_pre = pre(unit, worker), *unit_h = h(unit, worker);
  auto* product = piece<std::byte>(worker, plan.worker_product);
  const Rows rows = rows_of_x(unit, worker);
  linear_on_thread(rows_times(dims.in(), m, rows.row, dims.in_rows()), rows.data, group.in, nullptr,
                   unit_pre, product);
  activate_rows(dims, m, unit_pre, unit_h);
  linear_on_thread(rows_times(dims.out(), m, dims.hidden, dims.width), unit_h, group.out, nullptr,
                   y + unit.begin * dims.width, product);
}

// Panels [begin, end) of a matrix, as a matrix.
PackedMatrix some_panels(PackedMatrix b, int64_t begin, int64_t end) {
  b.n = std::min(b.n, end * PackedMatrix::kPanel) - begin * PackedMatrix::kPanel;
  return b;
}
const void* panel_data(const PackedMatrix& b, const void* data, int64_t panel) {
  return static_cast<const std::byte*>(data) + static_cast<size_t>(panel) * b.panel_bytes();
}

void Call::run_in_panels(int64_t index, int64_t chunk, void* worker) const {
  const Unit& unit = units()[index];
  const Rows rows = rows_of_x(unit, worker);
  const int64_t begin = chunk * plan.in_chunk;
  const PackedMatrix b = some_panels(dims.in(), begin, begin + plan.in_chunk);
  float* unit_pre = pre(unit, worker);
  linear_on_thread(rows_times(b, unit.rows(), rows.row, dims.in_rows()), rows.data,
                   panel_data(b, groups[unit.group].in, begin), nullptr,
                   unit_pre + begin * PackedMatrix::kPanel,
                   piece<std::byte>(worker, plan.worker_product));
  Progress& state = progress()[index];
  if (state.left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  activate_rows(dims, unit.rows(), unit_pre, h(unit, worker));
  state.ready.store(true, std::memory_order_release);
}

void Call::run_out_panels(int64_t index, int64_t chunk, void* worker) const {
  const Unit& unit = units()[index];
  const int64_t begin = chunk * plan.out_chunk;
  const PackedMatrix b = some_panels(dims.out(), begin, begin + plan.out_chunk);
  // Tasks are handed out in order, so somebody works on what is missing.
  while (!progress()[index].ready.load(std::memory_order_acquire)) std::this_thread::yield();
  linear_on_thread(rows_times(b, unit.rows(), dims.hidden, dims.width), h(unit, worker),
                   panel_data(b, groups[unit.group].out, begin), nullptr,
                   y + unit.begin * dims.width + begin * PackedMatrix::kPanel,
                   piece<std::byte>(worker, plan.worker_product));
}

// All parts of first products come before all of second ones: by the time that a unit's second
// product is begun, others have run since its first.
void Call::run_panels(int64_t task, void* worker) const {
  const int64_t first = plan.units * plan.in_chunks;
  if (task < first) {
    run_in_panels(task / plan.in_chunks, task % plan.in_chunks, worker);
  } else {
    run_out_panels((task - first) / plan.out_chunks, (task - first) % plan.out_chunks, worker);
  }
}

}  // namespace

size_t expert_scratch_bytes(const ExpertDims& dims, const ExpertGroup* groups, int threads,
                            bool keeps_pre) {
  return make_plan(dims, groups, threads, keeps_pre).bytes;
}

void expert_rows(ThreadPool& threads, const ExpertDims& dims, const ExpertGroup* groups,
                 const int32_t* order, const float* x, float* pre, float* y, void* scratch) {
  const Plan plan = make_plan(dims, groups, threads.size(), pre != nullptr);
  const Call call{dims, plan, groups, order, x, pre, y, scratch};
  cut_units(dims.groups, groups, plan.unit_rows, call.units());
  if (plan.form == Form::kProducts) {
    for (int64_t u = 0; u < plan.units; ++u) call.run_whole(threads, call.units()[u]);
    return;
  }
  if (plan.form == Form::kUnits) {
    threads.parallel_for(plan.units, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t u = begin; u < end; ++u) call.run_unit(call.units()[u], call.worker(worker));
    });
    return;
  }
  for (int64_t u = 0; u < plan.units; ++u) {
    new (call.progress() + u) Progress{.left = plan.in_chunks, .ready = false};
  }
  const int64_t tasks = plan.units * (plan.in_chunks + plan.out_chunks);
  threads.parallel_for(tasks, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t task = begin; task < end; ++task) call.run_panels(task, call.worker(worker));
  });
}

}  // namespace braid::cpu
