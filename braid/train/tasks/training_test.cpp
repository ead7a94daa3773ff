// A run on a task resumes like any other, learns, and stops when it has.

#include <gtest/gtest.h>

#include "braid/train/tasks/task_source.h"
#include "braid/train/trainer.h"
#include "tests/support/small_stack.h"

namespace braid {
namespace {

using test::Folder;

// A stack for the examples, and a run on them in a folder of its own.
class TaskRun {
 public:
  TaskRun(const std::filesystem::path& folder, const std::string& spec, const std::string& stack,
          int64_t batch, const TrainerOptions& options, int threads = 2)
      : ctx_({.threads = threads, .poison = true}),
        source_(TaskExamples(spec, 1, TaskSplit::kTrain), batch),
        set_(TaskExamples(spec, 1, TaskSplit::kHeldOut), 200),
        directory_(folder, {.dtype = DType::kF32}) {
    ModelConfig config;
    config.vocab = make_task(spec)->shape().vocab;
    config.width = 64;
    config.sublayers = parse_stack(stack);
    config.tied = true;
    stack_ = std::make_unique<Stack>(config,
                                     StackOptions{.trainable = true, .matrix_dtype = DType::kF32});
    stack_->initialize(ctx_, Rng(1));
    trainer_.emplace(ctx_, *stack_, source_, std::vector<const EvaluationSet*>{&set_}, directory_,
                     options);
  }
  Trainer& trainer() { return *trainer_; }

 private:
  Context ctx_;
  TaskSource source_;
  TaskSet set_;
  RunDirectory directory_;
  std::unique_ptr<Stack> stack_;
  std::optional<Trainer> trainer_;
};

TEST(TaskTraining, ResumedIsTheWholeRun) {
  const Folder folder("braid-task-resume");
  const TrainerOptions options{.accumulate = 2,
                               .schedule = {.peak = 1e-3, .warmup = 0, .steps = 9},
                               .save_every = 4,
                               .eval_every = 3};
  const auto run = [&](const char* name, int threads) {
    return std::make_unique<TaskRun>(folder.path() / name, "mqar:pairs=2,len=16,vocab=32",
                                     "swa:8 mamba2:state=16,head=16", 3, options, threads);
  };
  run("whole", 2)->trainer().run();
  run("cut", 1)->trainer().run(6);
  const auto resumed = run("cut", 1);
  EXPECT_TRUE(resumed->trainer().resume());
  EXPECT_EQ(resumed->trainer().steps_done(), 4);
  resumed->trainer().run();
  for (const char* file : {"model.safetensors", "checkpoints/step-9/tensors.safetensors"}) {
    EXPECT_EQ(read_text(folder.path() / "cut" / file), read_text(folder.path() / "whole" / file));
  }
  // A text, or another task, is another run.
  TaskRun other(folder.path() / "cut", "mqar:pairs=3,len=16,vocab=32",
                "swa:8 mamba2:state=16,head=16", 3, options);
  EXPECT_THROW(other.trainer().resume(), Error);
}

TEST(TaskTraining, AHybridLearnsRecallAndStops) {
  const Folder folder("braid-task-learn");
  const TrainerOptions options{
      .schedule = {.peak = 4e-3, .floor = 4e-3, .warmup = 10, .steps = 600},
      .save_every = 1000,
      .eval_every = 20,
      .stop_accuracy = 0.99};
  const std::string spec = "mqar:pairs=2,len=16,vocab=32";
  const std::string stack = "mamba2:state=16,head=16 attn:heads=2";
  std::vector<double> accuracy;
  int64_t steps = 0;
  {
    TaskRun run(folder.path(), spec, stack, 64, options, 1);
    run.trainer().run(
        {.on_evaluation = [&](int64_t, const EvaluationSet& set, const Evaluation& e) {
          EXPECT_EQ(set.name(), spec);
          EXPECT_EQ(e.targets, 400);
          EXPECT_EQ(e.bits_per_byte, 0);
          accuracy.push_back(e.accuracy);
        }});
    EXPECT_TRUE(run.trainer().stopped_early());
    steps = run.trainer().steps_done();
  }
  EXPECT_LT(accuracy.front(), 0.5);
  EXPECT_GE(accuracy.back(), 0.99);
  EXPECT_LT(steps, 600);
  // A run that has stopped has nothing left to do.
  TaskRun again(folder.path(), spec, stack, 64, options, 1);
  EXPECT_TRUE(again.trainer().resume());
  again.trainer().run();
  EXPECT_EQ(again.trainer().steps_done(), steps);
}

}  // namespace
}  // namespace braid
